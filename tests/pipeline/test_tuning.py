"""Searches by `--tune.trials`: what is tried, what is left, what is not looked at, and that a kill loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest
import run_tuning
import torch
import yaml
from optuna.trial import TrialState
from pytorch_lightning.callbacks import Callback
from tuning.outcome import Tried, compare_users, drop_values, find_best, keep_values, list_tried
from tuning.space import default_of, make_space, tidy
from tuning.study import ask, list_done, open_study
from tuning.watch import Watch

import train
from datamodules.splits import Split
from datamodules.tables import Tables
from models.config import ModelConfig, Recipe, recipe_of
from models.two_tower import TwoTower
from pipeline.config import Config, TuneConfig
from serve.errors import SchemaError
from serve.versions import Stage
from tests.models.tiny_towers import one_thread
from tests.pipeline.killed_search import CONFIG, N_TRIALS, read_study, read_trials, write_config
from tests.pipeline.killed_training import make_tables

ROOT = Path(__file__).parent.parent
N_KILLS = 2
RECIPE = Recipe(
    dim=64,
    n_blocks=1,
    n_heads=2,
    dropout=0.3,
    id_dropout=0.1,
    similarity="dot",
    correlations=0,
    neighbours=0,
    low_pass=0,
    shrink_items=False,
    freeze_items=False,
    negatives=512,
    learning_rate=2e-3,
    warmup_steps=50,
    batch_size=128,
    max_epochs=12,
    patience=5,
)
FIELDS = list(asdict(RECIPE))


@pytest.fixture(autouse=True)
def _alone():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def searched(shop) -> SimpleNamespace:
    """Give a finished search, and what its tables and configuration are."""
    out = shop.parent / "searched"
    with one_thread():
        assert train.main(["--config", str(shop), "--out", str(out), "--tune.trials", str(N_TRIALS)]) == 0
    return SimpleNamespace(config=shop, out=out, study=read_study(out))


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("chain") / "search"
    command = [sys.executable, "-m", "tests.pipeline.killed_search", str(folder), str(N_KILLS), "4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def whole_config_of(searched) -> train.Config:
    given, _ = train.parse(["--config", str(searched.config), "--out", str(searched.out)])
    with Stage.open(searched.out) as stage:
        return train.prepare(given, None, stage).config


def test_the_first_trial_is_what_the_data_chooses(searched):
    _, first, _ = searched.study["tried"][0]
    chosen = whole_config_of(searched)
    assert first == {name: getattr(chosen.model, name) for name in first}


def test_what_the_configuration_gives_is_not_tried(searched):
    for _, tried, _ in searched.study["tried"]:
        assert not tried.keys() & CONFIG["model"].keys()
        assert {"learning_rate", "dropout", "similarity"} <= tried.keys()


def test_the_figure_of_a_trial_is_the_best_of_its_epochs(searched):
    trials = read_trials(searched.out)
    whole = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len(trials) == N_TRIALS
    for trial in whole:
        reported = list(trial.intermediate_values.values())
        assert trial.value == max(reported) > 0
        assert trial.user_attrs["epochs"] == reported.index(max(reported)) + 1


def test_the_configuration_that_is_left_is_that_of_the_best_trial(searched):
    whole = [(max(figures.values()), tried) for state, tried, figures in searched.study["tried"] if state == "COMPLETE"]
    _, best = max(whole, key=lambda one: one[0])
    given, chosen = yaml.safe_load(searched.config.read_text()), whole_config_of(searched)
    written = yaml.safe_load((searched.out / "tuning" / "best.yaml").read_text())
    assert given["model"].items() | tidy(best).items() <= written["model"].items()
    assert written["out"] == str(searched.out)
    assert written.keys() == {"data", "model", "trainer", "out"}
    config, _ = train.parse(["--config", str(searched.out / "tuning" / "best.yaml")])
    with Stage.open(searched.out) as stage:
        run = train.prepare(config, None, stage).config
    assert run.data == chosen.data
    assert run.model == replace(chosen.model, **tidy(best))


def test_what_is_left_trains_the_towers_of_the_best_trial_whatever_else_its_values_would_choose(shop, tmp_path):
    rows, users, items = make_tables(False)
    frames = (rows.drop(columns="datetime"), users, items)  # a set: its width follows from whether there are blocks

    def prepare(path: Path) -> tuple[train.Config, train.Config, str]:
        given, text = train.parse(["--config", str(path), "--out", str(tmp_path)])
        with Stage.open(tmp_path) as stage:
            return given, train.prepare(given, frames, stage).config, text

    path = tmp_path / "shop.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(shop.read_text()), "model": {"weight_decay": 0.02}}))
    given, whole, text = prepare(path)
    chosen = recipe_of(whole.model)
    values = {"n_blocks": chosen.n_blocks + 1, "max_epochs": chosen.max_epochs + 1}
    default = {name: getattr(chosen, name) for name in values}
    tried = [Tried(1, 0, default, 0.2, False, ""), Tried(2, 1, values, 0.3, True, "")]
    (tmp_path / "tuning").mkdir()
    run_tuning.finish(given, whole, tried, text)
    _, trained, _ = prepare(tmp_path / "tuning" / "best.yaml")
    later = ("correlations", "neighbours", "low_pass", "shrink_items")
    expected = asdict(replace(chosen, **values)) | {name: getattr(trained.model, name) for name in later}
    assert asdict(recipe_of(trained.model)) == expected
    assert trained.model.weight_decay == 0.02


def test_what_is_judged_after_training_is_left_open():
    kept = run_tuning.keep_recipe(RECIPE)
    assert set(FIELDS) - kept.keys() == {"correlations", "neighbours", "low_pass", "shrink_items"}


def test_nothing_else_is_left(searched):
    assert searched.study["names"] == ["best.yaml", "study.db", "study.png"]
    assert {path.name for path in searched.out.iterdir()} == {".lock", "tuning"}
    assert (searched.out / "tuning" / "study.png").read_bytes().startswith(b"\x89PNG")


def test_a_longer_search_goes_on_from_a_shorter_one(searched, tmp_path, capsys):
    words = ["--config", str(searched.config), "--out", str(tmp_path), "--tune.trials"]
    assert train.main([*words, "2"]) == 0
    assert train.main([*words, str(N_TRIALS)]) == 0
    assert "2 trials are done already" in capsys.readouterr().out
    assert read_study(tmp_path)["tried"] == searched.study["tried"]


class Untouchable:
    """Stands for a test that nobody may look at."""

    def __getattr__(self, name):
        raise KeyError(f"the test was asked for {name}")

    def __len__(self):
        raise KeyError("the test was counted")


def test_the_test_is_not_looked_at(searched, tmp_path, monkeypatch):
    split = train.split_interactions
    monkeypatch.setattr(train, "split_interactions", lambda *given: replace(split(*given), test=Untouchable()))
    seen = []
    fit = run_tuning.fit_towers

    def spied(config, tables, parts, epochs):
        seen.append((tables.interactions, parts, epochs))
        return fit(config, tables, parts, epochs)

    monkeypatch.setattr(run_tuning, "fit_towers", spied)
    assert train.main(["--config", str(searched.config), "--out", str(tmp_path), "--tune.trials", "1"]) == 0
    ((rows, parts, epochs),) = seen
    assert epochs is None
    assert len(parts.test) == 0
    assert len(rows) == len(parts.train) + len(parts.validation)
    assert read_study(tmp_path)["tried"] == searched.study["tried"][:1]


def test_a_killed_search_goes_on_and_ends_as_one_that_was_not(chain):
    assert chain["code"] == chain["last"] == 0
    assert chain["codes"] == [-9] * N_KILLS
    assert chain["told"] == 143
    assert chain["killed"]["tried"] == chain["whole"]["tried"]
    assert chain["killed"]["best"] == chain["whole"]["best"]
    assert chain["killed"]["names"] == chain["whole"]["names"]
    assert set(chain["killed"]["states"]) <= {"COMPLETE", "PRUNED", "FAIL"}
    assert "FAIL" in chain["killed"]["states"]


def test_a_trial_that_diverges_counts_and_is_not_the_best(shop, tmp_path, monkeypatch, capsys):
    step, steps = TwoTower.training_step, []

    def diverge(self, batch, batch_idx):
        steps.append(self.learning_rate)
        if self.learning_rate != steps[0]:
            raise FloatingPointError("the loss is nan")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TwoTower, "training_step", diverge)
    assert train.main(["--config", str(shop), "--out", str(tmp_path), "--tune.trials", "3"]) == 0
    said = capsys.readouterr().out
    assert said.count("(the loss is nan)") == 2
    assert "nothing was better than what the data chose" in said
    assert yaml.safe_load((tmp_path / "tuning" / "best.yaml").read_text())["model"] == CONFIG["model"]


def test_a_trial_that_falls_behind_is_ended(shop, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda self: self.number == 1)
    assert train.main(["--config", str(shop), "--out", str(tmp_path), "--tune.trials", "2"]) == 0
    assert "(ended at epoch 1)" in capsys.readouterr().out
    (whole, _, first), (ended, _, second) = read_study(tmp_path)["tried"]
    assert (whole, len(first), ended, len(second)) == ("COMPLETE", 2, "PRUNED", 1)
    assert yaml.safe_load((tmp_path / "tuning" / "best.yaml").read_text())["model"] == CONFIG["model"]


def test_a_callback_that_was_given_alone_is_one_of_a_trial(tmp_path, monkeypatch):
    """The first trial ended in a traceback."""
    own, seen = Callback(), []

    def fit(config, *_):
        seen.extend(config.trainer["callbacks"])
        raise optuna.TrialPruned

    monkeypatch.setattr(run_tuning, "fit_towers", fit)
    whole = Config(model=ModelConfig(**asdict(RECIPE)), trainer={"callbacks": own}, out=tmp_path)
    space = make_space(RECIPE, ["dropout"], has_content=True)
    with open_study(tmp_path, {}) as study:
        run_tuning.attempt(study, whole, space, None, None)
    assert seen[0] is own
    assert [type(one) for one in seen] == [Callback, Watch]


def test_trials_need_a_validation():
    rows = pd.DataFrame({"user_id": [3, 3, 5], "item_id": [7, 11, 7]})
    split = Split(rows, rows.iloc[:0], rows, "files")
    with pytest.raises(SchemaError, match="of kind 'files' leaves no validation event"):
        run_tuning.without_test(Tables(rows, rows[["user_id"]], rows[["item_id"]]), split)


def test_nothing_that_can_be_trained_is_a_fault(shop, tmp_path, monkeypatch, capsys):
    def diverge(self, batch, batch_idx):
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(TwoTower, "training_step", diverge)
    assert train.main(["--config", str(shop), "--out", str(tmp_path), "--tune.trials", "2"]) == 2
    assert "none of 2 trials could be trained: the loss is nan" in capsys.readouterr().err


def test_another_study_is_not_gone_on_with(searched, capsys):
    words = ["--config", str(searched.config), "--out", str(searched.out), "--tune.trials", "9"]
    assert train.main([*words, "--model.weight_decay", "0.5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds another study: model.weight_decay is 0.01 there and 0.5 here" in line
    assert train.main([*words, "--model.dropout", "0.5"]) == 2
    assert "holds another study: searched.dropout is " in capsys.readouterr().err


def test_an_empty_database_is_named(tmp_path):
    (tmp_path / "study.db").touch()
    message = r"study.db holds no study; if it is damaged, begin anew with --overwrite$"
    with pytest.raises(SchemaError, match=message), open_study(tmp_path, {}):
        pass


def test_a_damaged_database_is_one_line(shop, tmp_path, capsys):
    (tmp_path / "tuning").mkdir()
    (tmp_path / "tuning" / "study.db").write_bytes(b"no database" * 100)
    words = ["--config", str(shop), "--out", str(tmp_path), "--tune.trials", "1"]
    assert train.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "study.db cannot be used: file is not a database; if it is damaged, begin anew with --overwrite" in line
    assert train.main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tune.trials", "0"], "tune.trials is 0; allowed: 1 or more"),
        (["--tune.trials", "many"], "tune.trials is 'many'; allowed: int"),
        (["--tune.trial", "3"], "did you mean 'trials'"),
        (["--tune.trials", "3", "--ckpt_path", "last"], "--ckpt_path belongs to a run"),
        (["--tune.trials", "3", "--data.split.kind", "files"], "data.split"),
    ],
)
def test_mistakes_are_one_line(shop, words, message, tmp_path, capsys):
    assert train.main(["--config", str(shop), "--out", str(tmp_path / "run"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_without_optuna_it_says_how_to_get_it(shop, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    assert train.main(["--config", str(shop), "--out", str(tmp_path), "--tune.trials", "1"]) == 2
    assert "-m pip install -e '.[tune]'" in capsys.readouterr().err


def test_a_configuration_that_fixes_everything_is_refused():
    given = train.Config(model=ModelConfig(**asdict(RECIPE)), tune=TuneConfig(2))
    with pytest.raises(SchemaError, match="fixes all that is searched"):
        run_tuning.lay_space(given, given)


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(RECIPE, dim=7, n_heads=7, n_blocks=0, dropout=0.0, negatives=0, batch_size=1, warmup_steps=1),
        replace(RECIPE, dim=12, n_heads=4, dropout=0.95, id_dropout=0.33, max_epochs=1),
        replace(RECIPE, dim=6, n_heads=1),  # 9 entries are tried too, which 2 heads do not divide
    ],
)
def test_the_choice_of_the_data_lies_in_every_range_and_what_is_drawn_is_a_model(recipe, tmp_path):
    space = make_space(recipe, FIELDS, has_content=True)
    default = default_of(recipe, space)
    assert all(space[name]._contains(space[name].to_internal_repr(value)) for name, value in default.items())
    assert not {"patience", "freeze_items", *run_tuning.JUDGED_LATER} & space.keys()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    for _ in range(40):
        drawn = tidy(study.ask(space).params)
        model = ModelConfig(**asdict(replace(recipe, **drawn)))  # refuses what is no model
        assert recipe.learning_rate / 4.1 < model.learning_rate < recipe.learning_rate * 4.1


@pytest.mark.parametrize(("chosen", "lowest", "highest"), [(1, 1, 2), (2, 1, 3), (24, 12, 36)])
def test_a_search_tries_more_epochs_than_the_data_chose_and_fewer(chosen, lowest, highest):
    epochs = make_space(replace(RECIPE, max_epochs=chosen), ["max_epochs"], has_content=True)["max_epochs"]
    assert (epochs.low, epochs.high) == (lowest, highest)


@pytest.mark.parametrize(
    ("name", "chosen", "lowest", "highest"),
    [
        ("n_blocks", 0, 0, 1),
        ("n_blocks", 1, 0, 2),
        ("n_blocks", 2, 1, 3),
        ("dim", 48, 24, 96),
        ("warmup_steps", 3, 1, 12),
        ("warmup_steps", 200, 50, 800),
        ("dropout", 0.1, 0.0, 0.3),
        ("dropout", 0.5, 0.3, 0.7),
        ("dropout", 0.7, 0.5, 0.8),
    ],
)
def test_a_range_reaches_to_both_sides_of_what_the_data_chose(name, chosen, lowest, highest):
    laid = make_space(replace(RECIPE, **{name: chosen}), [name], has_content=True)[name]
    assert (laid.low, laid.high) == (lowest, highest)


def test_what_cannot_matter_is_not_searched():
    assert "id_dropout" not in make_space(RECIPE, FIELDS, has_content=False)
    assert "negatives" not in make_space(replace(RECIPE, negatives=0), FIELDS, has_content=True)
    fixed = [name for name in FIELDS if name != "n_blocks"]
    assert "n_heads" not in make_space(replace(RECIPE, n_blocks=0), fixed, has_content=True)
    assert list(make_space(RECIPE, ["dropout"], has_content=True)) == ["dropout"]


@pytest.mark.parametrize("name", ["a b", "what?", "50%", "{x}"])
def test_a_study_lies_in_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    with open_study(folder, {"seed": 3}) as study:
        study.tell(study.ask(), 0.5)
    with open_study(folder, {"seed": 3}) as study:
        assert [trial.value for trial in study.get_trials()] == [0.5]
    assert [path.name for path in folder.iterdir()] == ["study.db"]
    with pytest.raises(SchemaError, match="seed is 3 there and 4 here"), open_study(folder, {"seed": 4}):
        pass


def test_the_difference_is_paired_user_by_user(tmp_path):
    rng = np.random.default_rng(5)
    theirs = rng.random(113)
    ours = theirs + 0.25
    keep_values(tmp_path, 0, {"novel": theirs})
    keep_values(tmp_path, 6, {"novel": ours})
    tried = [Tried(number, key, {}, 0.5, True, "") for number, key in ((1, 0), (5, 6))]
    (line,) = compare_users(tmp_path, tried[1], tried[0])
    assert line == "view novel: +0.2500 (95 % +0.2500, +0.2500) over 113 validation users"


def finished(state: TrialState, reported: list[float], **attributes) -> optuna.trial.FrozenTrial:
    value = max(reported) if state is TrialState.COMPLETE else None
    steps = dict(enumerate(reported, start=1))
    return optuna.trial.create_trial(state=state, value=value, intermediate_values=steps, user_attrs=attributes)


def test_the_best_trial_is_the_first_of_the_best_that_were_not_ended_early():
    trials = [
        finished(TrialState.COMPLETE, [0.1, 0.3, 0.2], epochs=2),
        finished(TrialState.PRUNED, [0.5, 0.4]),
        finished(TrialState.COMPLETE, [0.4, 0.2], epochs=1),
        finished(TrialState.COMPLETE, [0.2, 0.4], epochs=2),
        finished(TrialState.PRUNED, [], fault="the loss is nan"),
    ]
    tried = list_tried(trials)
    assert [one.figure for one in tried] == [0.3, 0.5, 0.4, 0.4, None]
    assert [one.note for one in tried] == ["epoch 2", "ended at epoch 2", "epoch 1", "epoch 2", "the loss is nan"]
    assert find_best(tried) == tried[2]
    assert find_best(tried[-1:]) is None


def test_what_is_drawn_follows_from_the_seed_what_is_finished_and_repeated_kills(tmp_path):
    space = make_space(RECIPE, ["learning_rate", "dropout"], has_content=True)
    default = default_of(RECIPE, space)

    def draw(study: optuna.Study, seed: int) -> dict:
        trial = ask(study, space, default, seed)
        study.tell(trial, state=TrialState.FAIL)  # as of one that was killed
        return trial.params

    with open_study(tmp_path, {}) as study:
        assert [draw(study, 1), draw(study, 2)] == [default] * 2  # killed in its first training, it begins again
        study.tell(ask(study, space, default, 1), 0.5)
        first, again, other = draw(study, 1), draw(study, 1), draw(study, 2)
        assert first == again != other
        later = draw(study, 1)
        assert later != first  # what was begun three times may be what kills
        study.tell(ask(study, space, default, 1), 0.4)
        assert draw(study, 1) not in (first, later)
        assert [trial.number for trial in list_done(study)] == [2, 7]


def test_a_trial_that_ran_when_the_search_was_killed_has_failed(tmp_path):
    with open_study(tmp_path, {}) as study:
        study.tell(study.ask(), 0.25)
        study.ask()
    with open_study(tmp_path, {}) as study:
        assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE, TrialState.FAIL]
        study.tell(study.ask(), 0.75)
        assert study.best_value == 0.75  # more is better
        study.tell(study.ask(), state=TrialState.PRUNED)
        assert [trial.number for trial in list_done(study)] == [0, 2, 3]


def test_the_figures_of_users_are_those_of_the_best_validation():
    model = TwoTower.__new__(TwoTower)
    torch.nn.Module.__init__(model)
    reported = []
    watch = Watch(lambda value, step: reported.append((value, step)) or step == 4)
    for step, value in enumerate([0.25, 0.5, 0.5, 0.125], start=1):
        model.validation_values = {"novel": [np.full(2, step), np.full(3, step)], "all": [np.zeros(5)]}
        metrics = {"val_ndcg_recent": torch.tensor(value), "val_ndcg_novel": torch.tensor(value)}
        trainer = SimpleNamespace(sanity_checking=False, callback_metrics=metrics)
        with pytest.raises(optuna.TrialPruned) if step == 4 else nullcontext():
            watch.on_validation_end(trainer, model)
    watch.on_validation_end(SimpleNamespace(sanity_checking=True), model)
    assert reported == [(0.25, 1), (0.5, 2), (0.5, 3), (0.125, 4)]
    assert watch.best == 0.5
    found = {view: figures.tolist() for view, figures in watch.best_values.items()}
    assert found == {"novel": [2.0] * 5}  # of the first that is best: its weights are kept


def test_figures_of_users_are_kept_of_the_trials_that_are_compared_alone(tmp_path):
    for key in range(4):
        keep_values(tmp_path, key, {"novel": np.zeros(2)})
    (tmp_path / "study.db").touch()
    drop_values(tmp_path, [0, 2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.db", "users-0.json", "users-2.json"]
