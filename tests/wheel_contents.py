"""What `make wheel` built, and what it does alone; not collected by default."""

import os
import re
import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.timeout(900)  # mypy reads numpy, pandas and all of ours
ROOT = Path(__file__).parents[1]
ALONE = (
    ROOT / "build" / "alone" / "bin"
)  # a fresh environment with the wheel, mypy and the stubs of pandas
EXAMPLE = ROOT / "examples" / "from_dataframe.py"
REQUIRED = {
    "bascule/py.typed",
    "bascule/train.py",
    "bascule/configs/grocery.yaml",
    "bascule/configs/library.yaml",
    "bascule/datamodules/sample/interactions.parquet",
    "bascule/datamodules/sample/library/interactions.parquet",
    "bascule/datamodules/sample/README.md",
    "bascule/evaluation/templates/report.html",
    "bascule/evaluation/templates/report.css",
    "bascule/evaluation/templates/report.mplstyle",
    "bascule/evaluation/templates/MODEL_CARD.md",
    "bascule/service/http/page.html",
    "bascule/service/http/metrics.toml",
    "bascule/service/http/document.json",
}


def run(folder, *words):
    """Run a command of the environment in a folder, as somebody would who has nothing else."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [ALONE / words[0], *words[1:]],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
    )


def test_the_wheel_holds_one_package_and_takes_no_other_name():
    (wheel,) = Path("build/wheel").glob("bascule-*.whl")
    names = ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"bascule"}
    assert set(names) >= REQUIRED


def test_the_example_runs_and_is_typed_beside_folders_that_are_called_as_ours(tmp_path):
    for name in ("models", "serve", "train"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('somebody else')\n")
    (tmp_path / "example.py").write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    done = run(tmp_path, "python", "example.py")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tea" / "bundle" / "manifest.json").exists()
    (tmp_path / "wrong.py").write_text(
        "import bascule\nbascule.load(7)\nbascule.fit('x.csv', epoch=3)\n"
    )
    typed = run(tmp_path, "mypy", "--strict", "example.py", "wrong.py")
    faults = re.findall(r"^(\S+?):\d+: error:", typed.stdout, re.MULTILINE)
    assert faults == ["wrong.py"] * 2, typed.stdout


def test_its_command_trains_on_the_second_sample_from_anywhere_and_checks_what_came_of_it(
    tmp_path,
):  # the first sample is trained on in tests/service/test_pages_run.py
    help_ = run(tmp_path, "bascule", "train", "--help")
    assert help_.stdout.startswith("usage: bascule train ")
    assert "python -m" not in run(tmp_path, "bascule", "serve", "--help").stdout
    options = [
        "--model.max_epochs",
        "1",
        "--model.dim",
        "8",
        "--evaluation.baselines",
        "[]",
    ]
    done = run(tmp_path, "bascule", "train", "--sample", "library", *options, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "bascule similar" in done.stdout
    assert run(tmp_path, "bascule", "verify", "--bundle", "run/bundle").returncode == 0
