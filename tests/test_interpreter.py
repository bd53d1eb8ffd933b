import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from serve import interpreter
from serve.interpreter import EVALUATING, SERVING, TRAINING, name_interpreter, require_packages

ROOT = Path(__file__).parents[1]
BARE = "import sys, runpy; sys.argv = {words!r}; sys.path.insert(0, {root!r}); runpy.{run}"
COMMANDS = {
    "serve": "run_module('serve', run_name='__main__', alter_sys=True)",
    "evaluation": "run_module('evaluation', run_name='__main__', alter_sys=True)",
    "evaluation.report": "run_module('evaluation.report', run_name='__main__', alter_sys=True)",
    "train": "run_path('train.py', run_name='__main__')",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_python_without_packages_is_told_in_one_line(command):
    words = [command, "verify", "--bundle", "none"] if command == "serve" else [command]
    code = BARE.format(words=words, root=str(ROOT), run=COMMANDS[command])
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: the Python at {sys.executable} lacks 'faiss', 'numpy', 'onnxruntime' and ")


def test_the_packages_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    other_names = {"faiss_cpu": "faiss"}

    def names(requirements):
        found = (requirement.split(">")[0].split("[")[0].replace("-", "_") for requirement in requirements)
        return {other_names.get(name, name) for name in found}

    base, train = names(project["dependencies"]), names(project["optional-dependencies"]["train"])
    assert set(SERVING) == base
    assert base < set(EVALUATING) < set(TRAINING) <= base | train


def test_nothing_is_said_where_nothing_is_missing(capsys):
    require_packages(["json", "csv"])
    assert capsys.readouterr() == ("", "")


def test_the_environment_or_the_installation_is_named(tmp_path, monkeypatch, capsys):
    environment = tmp_path / "here" / ".venv" / "bin" / "python"
    environment.parent.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(interpreter, "_ROOT", tmp_path / "here")
    monkeypatch.setattr(interpreter, "_OF_ENVIRONMENT", environment)
    with pytest.raises(SystemExit, match="2"):
        require_packages(["json", "no_such_package"])
    assert " -m pip install 'bascule[train]'" in capsys.readouterr().err
    environment.touch()
    with pytest.raises(SystemExit, match="2"):
        require_packages(["json", "no_such_package"])
    assert "lacks 'no_such_package': run the command with .venv/bin/python instead" in capsys.readouterr().err


def test_the_interpreter_is_called_as_the_shell_would_find_it(tmp_path, monkeypatch):
    binary = tmp_path / "a b" / "bin" / "python"
    binary.parent.mkdir(parents=True)
    binary.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(binary))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert name_interpreter() == f"'{binary}'"
    monkeypatch.chdir(tmp_path)
    assert name_interpreter() == "'a b/bin/python'"
    monkeypatch.chdir(binary.parents[1])
    assert name_interpreter() == "bin/python"
    monkeypatch.setenv("PATH", str(binary.parent))
    assert name_interpreter() == "python"
    other = tmp_path / "python"
    other.symlink_to(binary)
    monkeypatch.setenv("PATH", str(tmp_path))  # another environment's link to the same file
    assert name_interpreter() == "bin/python"
