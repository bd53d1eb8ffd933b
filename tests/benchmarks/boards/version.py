"""The version of the code that decides a figure: a hash of the sources, without their comments and docstrings."""

from __future__ import annotations

import ast
import hashlib
import io
import subprocess
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[3]
SOURCES = (
    *("configs", "datamodules", "evaluation", "models", "pipeline", "serve", "train.py"),
    *(f"tests/benchmarks/boards/{name}.py" for name in ("peers", "protocols", "runs", "scores")),
    "tests/benchmarks/measured.py",
)


def hash_sources(root: Path = ROOT) -> str:
    """Return the hash of the Python and YAML sources of training, serving, evaluation, protocols and asking.

    A comment, a docstring, a test or a page changes nothing; any other character does.
    """
    digest = hashlib.sha256()
    for path in list_sources(root):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            text = keep_code(text)
        digest.update(f"{path.relative_to(root).as_posix()}\0{text}\0".encode())
    return digest.hexdigest()[:12]


def list_sources(root: Path) -> list[Path]:
    """Return the files whose text makes the version."""
    files = []
    for name in SOURCES:
        path = root / name
        files += [path] if path.suffix else [*path.rglob("*.py"), *path.rglob("*.yaml")]
    return sorted(path for path in files if path.exists())


def keep_code(source: str) -> str:
    """Return the lines of a module without comments, docstrings and blank lines."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]

    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
            continue
        if isinstance(node.value.value, str) and node.end_lineno is not None:
            for row in range(node.lineno, node.end_lineno + 1):
                lines[row - 1] = ""

    return "\n".join(line.rstrip() for line in lines if line.strip())


def tell_commit(root: Path = ROOT) -> str:
    """Return the commit that is checked out, and whether sources were changed since."""
    commit = _git(root, "rev-parse", "--short", "HEAD")
    if not commit:
        return "no commit"
    changed = _git(root, "status", "--porcelain", "--", *SOURCES)
    return f"{commit} with changes" if changed else commit


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip()
