"""The house keeps its order: imports go one way, serving stays light, packages and chains are small."""

import ast
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "bascule",
    "datamodules",
    "evaluation",
    "models",
    "pipeline",
    "privacy",
    "serve",
    "service",
)
MAY_IMPORT = {
    "serve": {"serve"},
    "datamodules": {"datamodules", "serve"},
    "service": {"service", "datamodules", "serve"},
    "evaluation": {"evaluation", "datamodules", "serve", "service"},
    "models": {"models", "serve", "service", "datamodules", "evaluation"},
    "privacy": {"privacy", "models", "evaluation", "datamodules", "serve", "service"},
    "pipeline": {
        "pipeline",
        "privacy",
        "models",
        "evaluation",
        "datamodules",
        "serve",
        "service",
    },
    "bascule": {
        "bascule",
        "train",
        "pipeline",
        "privacy",
        "models",
        "evaluation",
        "datamodules",
        "serve",
        "service",
    },
}
HEAVY = ("torch", "pytorch_lightning", "pandas")
HTTP = {"fastapi", "httptools", "prometheus_client", "pydantic", "starlette", "uvicorn"}
CHECKED_BY = {"pipeline.config_check": {"pydantic"}}  # training installs the service as well
MAX_CHAIN, SMALL = 14, 60


def name_module(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {
    name_module(path): path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))
}
SOURCES |= {name_module(path): path for path in ROOT.glob("*.py")}


def list_imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


IMPORTS = {name: set(list_imports(path)) for name, path in SOURCES.items()}
OURS = {name: (modules & set(SOURCES)) - {name} for name, modules in IMPORTS.items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package):
    for name in SOURCES:
        if name.split(".")[0] == package:
            assert {module.split(".")[0] for module in OURS[name]} <= MAY_IMPORT[package], name


def test_the_service_lies_above_what_answers_in_process():
    for name, modules in OURS.items():
        if name.startswith("serve") and not name.startswith("service.http"):
            assert not any(module.startswith("service.http") for module in modules), name


def test_only_the_http_part_imports_what_its_extra_installs():
    for name, modules in IMPORTS.items():
        if not name.startswith("service.http"):
            used = HTTP & {module.split(".")[0] for module in modules}
            assert used <= CHECKED_BY.get(name, set()), name


def test_no_module_of_ours_imports_the_other_lightning():
    for name, modules in IMPORTS.items():
        assert not any(module.split(".")[0] == "lightning" for module in modules), name


def test_what_serves_and_exports_loads_no_training_library():
    modules = [
        name
        for name in SOURCES
        if name.startswith(("serve.", "service.")) and not name.endswith("__main__")
    ]
    modules.append("datamodules.read")
    assert len(modules) > 40
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_no_module_is_a_section_of_another():
    lines = {name: path.read_text(encoding="utf-8").count("\n") for name, path in SOURCES.items()}
    importers = Counter(module for modules in OURS.values() for module in modules)
    sections = [name for name, size in lines.items() if importers[name] == 1 and size < SMALL]
    assert [name for name in sections if SOURCES[name].stem not in ("__init__", "__main__")] == []


def test_no_chain_of_imports_is_long_or_closed():
    @cache
    def measure(name, above):
        assert name not in above, f"{name} imports itself by way of {sorted(above)}"
        return 1 + max((measure(module, above | {name}) for module in OURS[name]), default=0)

    assert max(measure(name, frozenset()) for name in OURS) <= MAX_CHAIN
