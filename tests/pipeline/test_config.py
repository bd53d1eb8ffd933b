from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import train
import yaml
from models.config import ModelConfig
from pipeline.config import MAX_SEED, Config, complete_text, parse
from serve.errors import SchemaError


def print_of(capsys, *words):
    with pytest.raises(SystemExit) as end:
        parse(words)
    assert end.value.code in (0, None)
    return capsys.readouterr().out


def test_the_printed_config_is_the_one_that_runs(capsys):
    text = print_of(capsys, "--print_config", "--seed", "5")
    assert parse(["--config", text])[0] == replace(parse(["--seed", "5"])[0], out=Path("runs/run"))
    printed = yaml.safe_load(text)
    assert printed["seed"] == 5
    assert "datamodules/sample" in printed["data"]["interactions"]["path"]
    assert list(printed["model"]) == [field.name for field in fields(ModelConfig)]


def test_the_help_explains_each_key_of_the_model(capsys):
    printed = " ".join(print_of(capsys, "--help").split())
    explanations = printed[
        printed.index("--model.dim DIM Entries") :
    ]  # behind the list of all options
    for field in fields(ModelConfig):
        option = f"--model.{field.name}"
        words = explanations[explanations.index(f"{option} ") :].split(" (type: ")[0]
        assert len(words.split()) > 2, option  # more than the option and the place of its value


@pytest.mark.parametrize(
    "words",
    [
        ["--model.dmi", "3"],
        ["--sample", "bakery"],
        ["--config", "configs/library.yaml", "--sample", "library"],
        ["--model.dim", "x"],
        ["--model.dim", "0"],
        ["--data.split.kind", "foo"],
        ["--trainer.foo", "3"],
        ["--trainer.log_every_n_steps", "often"],
        ["--trainer.max_epochs", "3"],
        ["--seed", "-1"],
        ["--evaluation.baselines", "[popularity, eas]"],
        ["--ckpt_path", "first"],
        ["--quick", "--warm_start", "--previous", "tests"],
        ["stray"],
        ["--config", "no such file.yaml"],
        ["--config", "{tmp}"],
        ["--config", "{tmp}/broken.yaml"],
        ["--config", "{tmp}/binary.yaml"],
        ["--config", "{tmp}/old.yaml"],
    ],
    ids=" ".join,
)
def test_a_fault_of_the_configuration_is_one_line_and_status_2(tmp_path, capsys, words):
    (tmp_path / "broken.yaml").write_text("model:\n  dim: [3\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "old.yaml").write_text(
        "model: {dim: 8, correlations: 128}\n"
    )  # of a release before
    assert train.main([word.replace("{tmp}", str(tmp_path)) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: ")
    assert "Traceback" not in line


@pytest.mark.parametrize(
    "values",
    [{"seed": MAX_SEED + 1}, {"seed": "1"}, {"out": "runs"}, {"model": {"dim": 8}}],
)
def test_python_is_checked_as_the_command_line_is(values):
    with pytest.raises(SchemaError, match=f"{next(iter(values))} is .*; allowed: "):
        Config(**values)


@pytest.mark.parametrize(
    ("words", "out"),
    [
        ([], "runs/grocery"),
        (["--sample", "library"], "runs/library"),
        (["--config=mine.yaml"], "runs/mine"),
        (["--config=mine.yaml", "--config", "model: {dim: 8}"], "runs/mine"),
        (["--config", "model: {dim: 8}"], "runs/run"),
        (["--config=mine.yaml", "--out", "elsewhere"], "elsewhere"),
    ],
)
def test_a_run_is_called_by_the_last_file_of_its_configuration(tmp_path, monkeypatch, words, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("seed: 7\n")
    assert parse(words)[0].out == Path(out)


def test_the_kept_configuration_is_complete():
    config, text = parse(
        ["--config", "{model: {dim: 8}, data: {ties: simultaneous}}", "--overwrite"]
    )
    whole = yaml.safe_load(complete_text(text, config))
    assert whole["model"] == {
        field.name: 8 if field.name == "dim" else None for field in fields(ModelConfig)
    }
    assert whole["data"]["ties"] == "simultaneous"
