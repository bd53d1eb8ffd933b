from dataclasses import fields
from pathlib import Path

import pytest
import pytorch_lightning as pl
import yaml

from models.config import ModelConfig
from pipeline.config import (
    DEFAULT_CONFIG,
    LARGEST_SEED,
    SAMPLE_NOTE,
    Config,
    parse,
)
from serve.errors import SchemaError


def print_of(capsys, *words):
    with pytest.raises(SystemExit) as end:
        parse(words)
    assert end.value.code in (0, None)
    return capsys.readouterr().out


def test_the_printed_config_of_the_sample_says_so(capsys, tmp_path):
    printed = print_of(capsys, "--print_config", "--seed", "5")
    assert printed.startswith(f"{SAMPLE_NOTE}\n")
    assert f"configs/{DEFAULT_CONFIG.name}" in SAMPLE_NOTE
    sample = yaml.safe_load(DEFAULT_CONFIG.read_text())
    assert yaml.safe_load(printed)["data"]["interactions"]["path"] == sample["data"]["interactions"]["path"]
    assert yaml.safe_load(printed)["seed"] == 5


def test_the_printed_config_of_a_file_has_no_note(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {interactions: {path: mine.csv}}\n")
    printed = print_of(capsys, "--config", str(path), "--print_config")
    assert not printed.startswith("#")
    assert yaml.safe_load(printed)["data"]["interactions"]["path"] == "mine.csv"


def test_a_fault_beside_print_config_is_all_that_is_said(capsys):
    with pytest.raises(SchemaError, match="did you mean 'ties'"):
        parse(["--print_config", "--data.tie", "ordered"])
    assert capsys.readouterr().out == ""


def test_the_examples_of_the_help_have_a_line_each(capsys):
    lines = print_of(capsys, "--help").splitlines()
    for command in ("python train.py", "python train.py --config configs/template.yaml", "python train.py --help"):
        assert any(line.startswith(f"{command}  ") for line in lines)


def test_the_help_says_of_each_key_of_the_model_what_it_is(capsys):
    printed = " ".join(print_of(capsys, "--help").split())
    options = [f"--model.{field.name}" for field in fields(ModelConfig)]
    explanations = printed[printed.index("--model.dim DIM Entries") :]  # behind the list of all options
    for option in options:
        words = explanations[explanations.index(f"{option} ") :].split(" (type: ")[0]
        assert len(words.split()) > 2, option  # more than the option and the place of its value


def test_an_option_that_is_set_elsewhere_is_named_by_its_key():
    with pytest.raises(SchemaError, match=r"unknown key 'max_epochs'; did you mean 'model.max_epochs'"):
        parse(["--trainer.max_epochs", "3"])


@pytest.mark.parametrize(("words", "names"), [([], None), (["--evaluation.baselines", "[]"], [])])
def test_baselines_may_be_left_out(words, names):
    assert parse(words)[0].evaluation.baselines == names


def test_a_baseline_that_there_is_not_is_told_before_anything_runs():
    with pytest.raises(SchemaError, match=r"evaluation\.baselines: 'eas' is no baseline .*; did you mean 'ease'"):
        parse(["--evaluation.baselines", "[popularity, eas]"])


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_told_before_anything_runs(seed):
    with pytest.raises(SchemaError, match=f"seed is {seed}; allowed: 0 to 4294967295"):
        parse(["--seed", str(seed)])
    with pytest.raises(SchemaError, match=f"seed is {seed}"):
        Config(seed=seed)


def test_the_largest_seed_seeds_the_training():
    assert pl.seed_everything(Config(seed=LARGEST_SEED).seed, workers=True, verbose=False) == LARGEST_SEED
    pl.seed_everything(0, workers=True, verbose=False)


@pytest.mark.parametrize("name", ["max_epochs", "strategy", "plugins", "fast_dev_run", "enable_checkpointing"])
def test_arguments_of_the_trainer_that_belong_to_the_run_are_refused_in_python_too(name):
    with pytest.raises(SchemaError, match=f"trainer.{name} is set by the run; .* model.max_epochs"):
        Config(trainer={name: 1})


@pytest.mark.parametrize(
    ("words", "out"),
    [
        ([], "runs/grocery"),
        (["--config=mine.yaml"], "runs/mine"),
        (["--config=mine.yaml", "--config", "model: {dim: 8}"], "runs/mine"),
        (["--config", "model: {dim: 8}"], "runs/run"),
        (["--config=mine.yaml", "--out", "elsewhere"], "elsewhere"),
    ],
)
def test_a_run_is_called_by_the_last_file_of_its_configuration(tmp_path, monkeypatch, words, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("seed: 7\n")
    config, _ = parse(words)
    assert config.out == Path(out)


def test_a_configuration_in_place_of_a_file_may_be_longer_than_a_name():
    text = "\n".join([*(f"# {number}: a note" for number in range(40)), "model: {dim: 8}"])
    assert parse(["--config", text])[0].model.dim == 8


def test_what_is_given_to_the_trainer_is_what_is_not_its_default():
    words = ["--config", "model: {dim: 8}", "--trainer.log_every_n_steps=7", "--trainer.accelerator=auto"]
    assert parse(words)[0].trainer == {"log_every_n_steps": 7}
