"""The Python that runs a command: how to call it again, and what to say where it lacks packages.

Imports the standard library alone, since it is asked before anything else can be imported.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

SERVING = ("faiss", "numpy", "onnxruntime", "pyarrow")
"""Packages that answering needs, by the names they are imported by."""
HTTP = (*SERVING, "fastapi", "httptools", "prometheus_client", "uvicorn")
EVALUATING = (*SERVING, "jinja2", "pandas", "rich", "scipy")
TRAINING = (*EVALUATING, "duckdb", "jsonargparse", "onnx", "onnxscript", "pytorch_lightning", "torch")

_MOST_NAMED = 3

_ROOT = Path(__file__).parents[1]
_OF_ENVIRONMENT = _ROOT / ".venv" / "bin" / "python"


def require_packages(names: Iterable[str], extra: str = "train") -> None:
    """End with status 2 and one line, which names the extra to install, where packages cannot be imported."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        sys.stderr.write(f"error: {_explain(missing, extra)}\n")
        raise SystemExit(2)


def name_interpreter() -> str:
    """Return what to type for the Python that runs: `python`, if that is what the shell finds, or its path."""
    running, found = Path(sys.executable), shutil.which("python")
    if found is not None and _is_same(Path(found), running):
        return "python"
    return shlex.quote(_shorten(running))


def _explain(missing: list[str], extra: str) -> str:
    more = f" and {len(missing) - _MOST_NAMED} more packages" if len(missing) > _MOST_NAMED else ""
    names = ", ".join(f"'{name}'" for name in missing[:_MOST_NAMED]) + more
    start = f"the Python at {sys.executable} lacks {names}: "
    if _OF_ENVIRONMENT.exists() and not _is_same(_OF_ENVIRONMENT, Path(sys.executable)):
        return f"{start}run the command with {shlex.quote(_shorten(_OF_ENVIRONMENT))} instead"
    package = shlex.quote(f"{_ROOT}[{extra}]" if (_ROOT / "pyproject.toml").exists() else f"bascule[{extra}]")
    return f"{start}install what is needed with {name_interpreter()} -m pip install {package}"


def _is_same(path: Path, other: Path) -> bool:
    """Tell two names of one Python from the Pythons of two environments, which may be links to one file."""
    return path.absolute().parent == other.absolute().parent and path.resolve() == other.resolve()


def _shorten(path: Path) -> str:
    """Return the path relative to the working directory, if it lies under it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
