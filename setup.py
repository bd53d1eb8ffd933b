"""Build the wheel: all of ours lies inside `bascule`, as it does not in the checkout."""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

OURS = (
    "datamodules",
    "evaluation",
    "models",
    "pipeline",
    "privacy",
    "serve",
    "service",
    "train",
)
IMPORT = re.compile(rf"^(\s*from )({'|'.join(OURS)})(?=[. ])", re.MULTILINE)


class BuildInside(build_py):
    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return

        root = Path(self.build_lib)
        home = root / "bascule"
        shutil.rmtree(root, ignore_errors=True)  # an earlier build
        super().run()
        for name in OURS:
            for path in list(root.glob(f"{name}*")):
                path.rename(home / path.name)

        (home / "configs").mkdir()
        for name in ("grocery", "library", "template"):
            shutil.copy(f"configs/{name}.yaml", home / "configs")
        for path in home.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            path.write_text(IMPORT.sub(r"\1bascule.\2", text), encoding="utf-8")


setup(cmdclass={"build_py": BuildInside})
