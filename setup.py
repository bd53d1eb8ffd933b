"""Build the wheel: all of ours lies inside `bascule`. The checkout and editable installs keep their folders."""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

OURS = ("datamodules", "evaluation", "models", "pipeline", "serve", "service", "train")
IMPORT = re.compile(rf"^(\s*from )({'|'.join(OURS)})(?=[. ])", re.MULTILINE)
COMMANDS = {
    "python -m serve http": "bascule serve",
    "python -m serve": "bascule",
    "python -m evaluation.report": "bascule report",
    "python -m evaluation.feedback": "bascule feedback",
    "python -m evaluation.gate": "bascule gate",
    "python -m evaluation.drift": "bascule drift",
    "python -m pipeline.retrain": "bascule retrain",
    "python -m evaluation.off_policy": "bascule judge",
    "python -m evaluation": "bascule evaluate",
    "python train.py": "bascule train",
}  # as the checkout says it, and as it is said where the wheel is installed


class BuildInside(build_py):
    def run(self) -> None:
        if self.editable_mode:
            return super().run()
        root = Path(self.build_lib)
        home = Path(self.build_lib) / "bascule"
        shutil.rmtree(root, ignore_errors=True)  # of an earlier build
        super().run()
        for path in [path for name in OURS for path in root.glob(f"{name}*")]:
            path.rename(home / path.name)
        shutil.copytree(
            "configs", home / "configs", ignore=shutil.ignore_patterns("[!gt]*")
        )  # grocery, template
        for path in home.rglob("*.py"):
            text = IMPORT.sub(r"\1bascule.\2", path.read_text(encoding="utf-8"))
            for ours, theirs in COMMANDS.items():
                text = text.replace(ours, theirs)
            path.write_text(text, encoding="utf-8")


setup(cmdclass={"build_py": BuildInside})
