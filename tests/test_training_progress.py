"""What a training says: a bar that counts as people do, and lines where there is no terminal."""

from __future__ import annotations

import io
import itertools
from types import SimpleNamespace

import pytest
from rich.console import Console

from models import progress
from tests.test_fitting import EPOCHS, count_steps, curve, fit_tiny
from tests.tiny_towers import one_thread

WATCHED = {"enable_progress_bar": True}


@pytest.fixture(autouse=True)
def _alone():
    with one_thread():
        yield


@pytest.fixture
def lines(monkeypatch):
    """Return what gives the lines of a file; half a minute is over whenever somebody looks at the clock."""
    file = io.StringIO()
    monkeypatch.setattr(progress, "get_console", lambda: Console(file=file, width=40))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=itertools.count(step=30).__next__))
    return lambda: file.getvalue().splitlines()


def test_the_bar_counts_epochs_from_one():
    bar = progress.EpochsFromOne()
    bar._trainer = SimpleNamespace(max_epochs=9)
    assert bar._get_train_description(0).strip() == "Epoch 1/9"


@pytest.mark.parametrize("terminal", ["is_terminal", "is_jupyter"])
def test_a_terminal_and_a_notebook_have_a_bar(terminal, monkeypatch):
    console = SimpleNamespace(**{"is_terminal": False, "is_jupyter": False, terminal: True})
    monkeypatch.setattr(progress, "get_console", lambda: console)
    assert isinstance(progress.show_progress(), progress.EpochsFromOne)


def test_a_file_has_a_line_a_minute_and_one_at_the_end(tmp_path, lines, capsys):
    fit_tiny(tmp_path, patience=EPOCHS, **WATCHED)
    said, rows = lines(), curve(tmp_path)
    per_epoch = (len(said) - 1) // EPOCHS
    assert said[0] == f"epoch 1 of 7: {1 / per_epoch:.0%} after 0:01:00, at most 0:{7 * per_epoch - 1:02}:00 to go"
    for epoch, row in enumerate(rows[:-1], start=2):  # what the one before had
        figures = f"loss {float(row['train_loss']):.4f}; validation NDCG@10 {float(row['val_ndcg']):.4f}"
        assert said[(epoch - 1) * per_epoch].startswith(f"epoch {epoch} of 7: ")
        assert said[(epoch - 1) * per_epoch].endswith(figures)
    last = f"loss {float(rows[-1]['train_loss']):.4f}; validation NDCG@10 {float(rows[-1]['val_ndcg']):.4f}"
    assert said[-1] == f"7 of 7 epochs in 0:{7 * per_epoch}:30; {last}"
    assert capsys.readouterr().out == ""  # no other bar


def test_a_training_that_goes_on_took_no_time_for_what_was(tmp_path, lines, monkeypatch):
    with monkeypatch.context() as patch:
        steps = count_steps(patch, stop_after=20)
        with pytest.raises(KeyError, match="killed"):
            fit_tiny(tmp_path, patience=None, **WATCHED)
    per_epoch, whole_epochs = steps.count(0), steps[-1]
    assert whole_epochs > 1
    n_before = len(lines())
    fit_tiny(tmp_path, patience=None, **WATCHED)
    left = (EPOCHS - whole_epochs) * per_epoch // 2 - 1  # a batch takes half a minute
    begun = f"epoch {whole_epochs + 1} of 7: {2 / per_epoch:.0%} after 0:01:00, at most 0:{left:02}:00 to go"
    assert lines()[n_before].startswith(begun)
    assert "validation" not in lines()[-1]


def test_no_line_comes_before_a_minute_is_over(tmp_path, lines, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 1e9)
    fit_tiny(tmp_path, patience=None, **WATCHED)
    (only,) = lines()
    assert only.startswith("7 of 7 epochs in 0:")
