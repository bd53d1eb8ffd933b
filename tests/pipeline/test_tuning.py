"""The search: its space, its journal, and what it leaves."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest
import yaml
from models.config import ModelConfig, Recipe
from optuna.trial import TrialState
from pipeline.tuning import ask, list_done, make_space, open_study, tidy
from serve.errors import SchemaError
from tests.models.tiny_towers import one_thread
from tests.pipeline.killed_runs import run_search

RECIPE = Recipe(96, 1, 0.5, 0.1, "cosine", 64, 1024, 2e-3, 128, 16, 8, 1, 200)
KEYS = list(ModelConfig.__dataclass_fields__)


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(RECIPE, dim=1, n_blocks=0, dropout=0.0, negatives=0, max_epochs=1),
    ],
)
def test_every_drawn_value_is_a_model_and_the_default_lies_within(recipe):
    space = make_space(recipe, KEYS, has_content=True)
    assert "patience" not in space
    assert "neighbours" not in space
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(3))
    study.enqueue_trial({name: getattr(recipe, name) for name in space})
    first = study.ask(space).params
    assert first == {name: getattr(recipe, name) for name in space}
    drawn = [
        ModelConfig(**tidy(study.ask(space).params)) for _ in range(30)
    ]  # refuses what is no model
    assert len({one.learning_rate for one in drawn}) > 20
    assert all((one.dim or 1) % recipe.n_heads == 0 for one in drawn)


def test_a_study_goes_on_after_a_kill_that_tore_its_last_line(tmp_path):
    path, space = tmp_path / "study.jsonl", make_space(RECIPE, ["dim", "dropout"], True)
    default, origin = {"dim": 96, "dropout": 0.5}, {"seed": 1}
    study = open_study(path, origin)
    first = ask(study, space, default, 1)
    assert first.params == default
    study.tell(first, 0.25)
    second = ask(study, space, default, 1).params
    path.write_bytes(path.read_bytes() + b'{"op_code": 4, "wor')
    (tmp_path / "study.jsonl.lock").write_text("")
    again = open_study(path, origin)
    assert [trial.value for trial in list_done(again)] == [0.25]
    assert [trial.state for trial in again.trials] == [
        TrialState.COMPLETE,
        TrialState.FAIL,
    ]
    assert ask(again, space, default, 1).params == second  # it depends on what is finished alone


def test_another_study_is_refused(tmp_path):
    path = tmp_path / "study.jsonl"
    open_study(path, {"seed": 1})
    with pytest.raises(SchemaError, match="another study: seed is 1 there and 2 here"):
        open_study(path, {"seed": 2})


def test_a_search_leaves_a_configuration_to_train_with(tmp_path, capsys):
    with one_thread():
        assert run_search(tmp_path / "run", "") == 0
    folder = tmp_path / "run" / "tuning"
    assert {path.name for path in folder.iterdir()} == {
        "study.jsonl",
        "best.yaml",
    }
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["out"] == str(tmp_path / "run")
    assert "tune" not in best
    assert best["model"]["dim"] == 8  # as it was given
    printed = capsys.readouterr().out
    assert printed.count("of 3: validation NDCG@10") == 3
    assert "train it: bascule train --config" in printed


def test_only_open_keys_that_mean_something_are_searched():
    assert set(make_space(RECIPE, ["dim", "dropout"], has_content=True)) == {
        "dim",
        "dropout",
    }
    without = make_space(replace(RECIPE, negatives=0, id_dropout=0.0), KEYS, has_content=False)
    assert not {"negatives", "id_dropout"} & without.keys()
