"""The benchmark of seconds to a quality: where a peer is passed, what is kept, and a clock that stands still."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

import tests.benchmarks.time_to_quality as time_to_quality
from tests.benchmarks.board_fit import Clock
from tests.benchmarks.quality_curves import BoardResult, Peer, Point, compare, draw

POINTS = [
    Point(epoch, 10.0 * epoch, 8.0 * epoch, quality) for epoch, quality in ((1, 0.02), (2, 0.05), (3, 0.04), (4, 0.07))
]
PEERS = [
    Peer("sasrec", 80.0, 64.0, 0.045, "--epochs 40"),
    Peer("dssm", 50.0, 40.0, 0.01, ""),
    Peer("far", 9.0, 9.0, 0.07, ""),
]
RESULT = BoardResult("amazon-beauty", 0, POINTS, 41.0, 33.0, PEERS)


def test_a_peer_is_passed_by_the_first_epoch_that_is_better():
    assert [RESULT.passes(peer.quality) for peer in PEERS] == [POINTS[1], POINTS[0], None]
    assert RESULT.best_peer.name == "far"
    rows = [row[1:] for row in compare(RESULT)]
    assert rows[0] == ("sasrec", "80 (64)", "0.0450", "20 (16), epoch 2", "0.25 (0.25)")
    assert rows[1][-1] == "0.20 (0.20)"
    assert rows[2] == ("**far**", "9 (9)", "0.0700", "never", "")


def test_a_result_is_read_as_it_was_kept(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(asdict(RESULT)))
    assert BoardResult.read(tmp_path / "result.json") == RESULT


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_picture_has_a_panel_for_each_board(tmp_path, suffix):
    draw([RESULT, RESULT], "NDCG@10", tmp_path / f"curve{suffix}")
    assert (tmp_path / f"curve{suffix}").stat().st_size > 1000
    if suffix == ".svg":
        assert (tmp_path / "curve.svg").read_text().count('<g id="axes_') == 2


def test_the_clock_stands_still_while_the_test_is_measured(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "process_time", lambda: now[0] / 2)
    curve = time_to_quality.Curve(prepared=None)
    curve.clock = Clock.start()

    class Ranking:
        def measure(self, towers):
            now[0] += 100
            return {"novel": np.array([0.25, 0.75])}

    curve.ranking = Ranking()
    for epoch in range(3):
        now[0] += 7
        curve.on_train_epoch_end(SimpleNamespace(current_epoch=epoch), SimpleNamespace(towers=None))
    assert curve.points == [Point(epoch, 7.0 * epoch, 3.5 * epoch, 0.5) for epoch in (1, 2, 3)]
