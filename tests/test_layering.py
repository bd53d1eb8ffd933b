"""Imports go one way, and serving stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"datamodules", "evaluation", "models", "serve", "tuning"}
MAY_IMPORT = {
    "serve": {"serve"},
    "datamodules": {"datamodules", "serve"},
    "evaluation": {"evaluation", "serve"},
    "models": {
        "models",
        "serve",
        "datamodules.batch",
        "evaluation.baselines",
        "evaluation.metrics",
        "evaluation.ranking",
    },
    "tuning": {"tuning", "models", "evaluation", "serve"},
}
HEAVY = ("torch", "pytorch_lightning", "pandas")

HTTP = {"fastapi", "httptools", "prometheus_client", "pydantic", "starlette", "uvicorn"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("package", sorted(OURS))
def test_imports_go_one_way(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        for module in imported(path):
            top = module.split(".")[0]
            if top in OURS:
                allowed = MAY_IMPORT[package]
                assert top in allowed or module in allowed, f"{path.relative_to(ROOT)} imports {module}"


def test_only_the_http_part_imports_what_its_extra_installs():
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            if path.parent != ROOT / "serve" / "http":
                assert not HTTP & {module.split(".")[0] for module in imported(path)}, path


def test_no_module_of_ours_imports_the_other_lightning():
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            assert not any(module.split(".")[0] == "lightning" for module in imported(path)), path


def test_no_module_of_serve_loads_training_libraries():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "serve").rglob("*.py"))
        if path.stem not in ("__init__", "__main__")
    ]
    assert len(modules) > 20
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
