"""The `curl` examples of the README, as printed, against a service of the bundled sample."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve.layout import STATE
from tests.served import ROOT, serving

README = (ROOT / "README.md").read_text(encoding="utf-8")
DEMO = ROOT / "runs" / "demo"
QUICKLY = (
    *("--model.dim", "16", "--model.max_epochs", "1", "--trainer.limit_train_batches", "2"),
    *("--trainer.limit_val_batches", "1", "--evaluation.baselines", "[]"),
)
PRINTED = "http://127.0.0.1:8080"


def commands():
    (block,) = re.findall(r"```bash\n(.*?)```", README.partition("## Serve over HTTP")[2], re.DOTALL)
    return [line for line in block.splitlines() if line.startswith("curl ")]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Give a copy of the demo, or what a few steps on the same tables make of it."""
    folder = Path(tmp_path_factory.mktemp("demo") / "run")
    if (DEMO / "bundle").exists():
        shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns(STATE, "checkpoints", "logs"))
        return folder
    subprocess.run([sys.executable, "train.py", *QUICKLY, "--out", str(folder)], cwd=ROOT, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_examples_of_the_readme_are_answered_as_printed(run_folder):
    with serving("--bundle", run_folder / "bundle") as server:
        replies = {}
        for command in commands():
            words = shlex.split(command.replace(PRINTED, f"http://127.0.0.1:{server.port}"))
            done = subprocess.run([*words, "--fail-with-body"], capture_output=True, text=True, check=False)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            replies[command] = done.stdout
        assert server.end() == 0
    lists = [json.loads(reply)["answers"] for command, reply in replies.items() if "/v1/recommend" in command]
    assert [len(answers) for answers in lists] == [1, 1, 2, 1]
    assert all(len(answer["items"]) == 5 for answers in lists for answer in answers)


def test_the_examples_name_routes_that_there_are():
    from serve.http.metrics import name_route

    paths = [re.search(rf"{PRINTED}(\S+)", command)[1] for command in commands()]
    assert len(paths) >= 10
    assert "other" not in map(name_route, paths)
