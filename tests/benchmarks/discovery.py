"""Measure what the dials cost in NDCG@10 and what they buy, and what reasons cost in time.

    python tests/benchmarks/discovery.py --runs NAME=DIR ... [--json FILE] [--plot FILE] [--reasons N]

DIR is the folder of a finished run whose data is where its `config.yaml` says. Lists are asked as the run's own
evaluation asks: each user of the test once, by the profile before it; of more than 1,000 as many are drawn. Intervals:
1,000 bootstrap samples of users, paired with the list without dials; coverage: of the lists of half of the users, drawn
200 times.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from datamodules.clean import only_targets
from evaluation.evaluate import as_lists
from evaluation.holdout import Ids, group_requests, plain_requests
from evaluation.metrics import Targets, find_head, measure_users, summarise
from serve.reasons import explain
from serve.rerank import Dials, recommend
from tests.benchmarks.measured import recall

K, MAX_USERS = 10, 1000
MAX_SHOWN = 0.16  # loss of NDCG that the picture shows
VALUES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
SHARES = (0.1, 0.2, 0.3)
GAINS = {
    "diversity": "diversity within the list",
    "novelty": "distance from the user's own past",
    "tail": "tail share",
}
COLOURS = {
    "diversity": "#0b62a8",
    "novelty": "#b86e00",
    "both": "#00795c",
    "new_share": "#7d8894",
}


def settings() -> Iterator[tuple[str, float, Dials]]:
    yield "none", 0.0, Dials()
    for value in VALUES:
        yield "diversity", value, Dials(diversity=value)
        yield "novelty", value, Dials(novelty=value)
        yield "both", value, Dials(diversity=value, novelty=value)
    for value in SHARES:
        yield "new_share", value, Dials(new_share=value)


@dataclass
class World:
    """A run with its test."""

    name: str
    folder: Path

    def __post_init__(self) -> None:
        work, self.recommender = recall(self.folder)
        past, test = work.split.refit, only_targets(work.split.test)
        ids = Ids.number(self.recommender.bundle.items.column("item_id").to_pylist(), (past, test))
        held_out = group_requests(test, ids)
        drawn = np.sort(np.random.default_rng(0).permutation(len(held_out.rows))[:MAX_USERS])
        self.targets = Targets(held_out.targets.items.take(drawn), held_out.targets.user[drawn])
        self.requests = plain_requests(held_out.rows.iloc[drawn], work.split.test_at)
        events = ids.events(past)
        self.is_tail = ~find_head(events.count_items())
        self.owned = events.owned().take(self.targets.user)

    @cached_property
    def directions(self) -> np.ndarray:
        vectors = self.recommender.bundle.vectors[:, : self.recommender.taste_dim]
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def measure(self, dials: Dials) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return metrics per user, (U,), and the lists (U, K)."""
        lists = as_lists(recommend(self.recommender, self.requests, K, None, dials), K)
        values = {f"NDCG@{K}": measure_users(lists, self.targets, (K,))[f"NDCG@{K}"]}
        of_lists = [self._describe(place, rows[rows >= 0]) for place, rows in enumerate(lists)]
        return values | {name: np.array([one[name] for one in of_lists]) for name in GAINS}, lists

    def _describe(self, place: int, rows: np.ndarray) -> dict[str, float]:
        vectors = self.directions[rows]
        likeness, n = vectors @ vectors.T, len(rows)
        past = self.directions[
            self.owned.item_row[self.owned.offsets[place] : self.owned.offsets[place + 1]]
        ]
        return {
            "diversity": 1 - float(likeness.sum() - np.trace(likeness)) / max(1, n * (n - 1)),
            "novelty": 1 - float((vectors @ past.T).max(axis=1).mean()) if len(past) else 1.0,
            "tail": float(self.is_tail[rows].mean()),
        }


def cover(lists: np.ndarray, n_items: int) -> dict[str, Any]:
    """Return the share of the catalogue in the lists of half of the users, with an interval."""
    rng = np.random.default_rng(0)
    halves = (lists[rng.permutation(len(lists))[: len(lists) // 2]] for _ in range(200))
    found = [len(np.unique(half[half >= 0])) / n_items for half in halves]
    return {
        "coverage": float(np.mean(found)),
        "coverage_ci95": np.quantile(found, (0.025, 0.975)).tolist(),
    }


def examine(world: World) -> list[dict[str, Any]]:
    base: dict[str, np.ndarray] = {}
    rows = []
    for dial, value, dials in settings():
        values, lists = world.measure(dials)
        base = base or values
        change = summarise({name: values[name] - base[name] for name in values})
        ndcg, bounds = base[f"NDCG@{K}"].mean(), change[f"NDCG@{K}_ci95"]
        cost = {
            "cost": 0 - change[f"NDCG@{K}"] / ndcg,
            "cost_ci95": [0 - bounds[1] / ndcg, 0 - bounds[0] / ndcg],
        }
        row = {
            "dial": dial,
            "value": value,
            **cost,
            "gain": change,
            "mean": summarise(values),
        }
        rows.append(row | cover(lists, len(world.directions)))
        print(world.name, dial, value, write(row | rows[-1]), flush=True)
    return rows


def write(row: dict[str, Any]) -> str:
    """Write a row of the table."""
    low, high = row["cost_ci95"]
    gains = " | ".join(
        f"{row['mean'][name]:.3f} ({row['mean'][f'{name}_ci95'][0]:.3f}, {row['mean'][f'{name}_ci95'][1]:.3f})"
        for name in GAINS
    )
    low_c, high_c = row["coverage_ci95"]
    cover = f"{row['coverage']:.3f} ({low_c:.3f}, {high_c:.3f})"
    return f"{100 * row['cost']:+.1f} % ({100 * low:+.1f}, {100 * high:+.1f}) | {gains} | {cover}"


def time_reasons(world: World, n_users: int) -> dict[str, float]:
    """Return the median milliseconds of a list with reasons and without."""
    seconds: dict[str, list[float]] = {
        "list": [],
        "list and reasons": [],
        "list with dials": [],
    }
    for request in world.requests[:n_users]:
        begun = time.perf_counter()
        (answer,) = world.recommender.recommend([request], K)
        listed = time.perf_counter()
        explain(world.recommender, [request], [answer.item_id.tolist()])
        explained = time.perf_counter()
        recommend(world.recommender, [request], K, None, Dials(0.3, 0.3, 0.1))
        turned = time.perf_counter()
        for name, took in zip(
            seconds,
            (listed - begun, explained - begun, turned - explained),
            strict=True,
        ):
            seconds[name].append(took)
    return {name: round(1000 * float(np.median(found)), 2) for name, found in seconds.items()}


def check_reasons(world: World, n_users: int) -> str:
    """Compare effects with those of requests reduced by hand, each asked alone."""
    recommender, worst, n_effects = world.recommender, 0.0, 0
    known = [request for request in world.requests if recommender.profiles.get(request["user_id"])]
    for request in known[:n_users]:
        profile = recommender.profiles.get(request["user_id"])
        columns = profile.history.columns().items()
        events = [
            dict(zip(dict(columns), row, strict=True))
            for row in zip(*(v.tolist() for _, v in columns), strict=True)
        ]
        history = [
            {name: one[name] for name in ("item_id", "datetime", "event", "weight") if name in one}
            for one in events
        ]
        asked = {
            "history": history,
            "features": profile.features,
            "datetime": request.get("datetime", events[-1]["datetime"]),
        }
        items = next(iter(recommender.recommend([asked], K))).item_id.tolist()
        full = recommender.score([asked], items)[0]
        for place, reasons in enumerate(explain(recommender, [asked], [items])[0].reasons):
            for one in (one for one in reasons if one.kind != "popular"):
                kept = [event for event in history if event["item_id"] != one.item_id]
                others = {
                    name: value for name, value in asked["features"].items() if name != one.name
                }
                reduced = asked | (
                    {"history": kept} if one.item_id is not None else {"features": others}
                )
                worst = max(
                    worst,
                    abs(full[place] - recommender.score([reduced], items)[0][place] - one.effect),
                )
                n_effects += 1
    figures = f"{n_effects} effects for {n_users} users differ by {worst:.1e} at most"
    return f"{figures} from those of requests reduced by hand"


def plot(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw for each run what each dial buys against what it costs."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = {**GAINS, "coverage": "coverage of the catalogue"}
    figure, axes = pyplot.subplots(
        len(found),
        len(names),
        figsize=(3.4 * len(names), 3.1 * len(found)),
        layout="constrained",
        squeeze=False,
    )
    for line, (run, rows) in zip(axes, found.items(), strict=True):
        for panel, (name, label) in zip(line, names.items(), strict=True):
            for dial, colour in COLOURS.items():
                own = [
                    row for row in rows if row["dial"] in ("none", dial) and row["cost"] < MAX_SHOWN
                ]
                of_gain = [row if name == "coverage" else row["mean"] for row in own]
                gains, bounds = (
                    [one[name] for one in of_gain],
                    np.array([one[f"{name}_ci95"] for one in of_gain]),
                )
                costs, spread = (
                    [100 * row["cost"] for row in own],
                    100 * np.array([row["cost_ci95"] for row in own]),
                )
                panel.errorbar(
                    costs,
                    gains,
                    xerr=np.abs(spread.T - costs),
                    yerr=np.abs(bounds.T - gains),
                    color=colour,
                    linewidth=1.4,
                    elinewidth=0.6,
                    marker="o",
                    markersize=3,
                    label={"both": "diversity = novelty"}.get(dial, dial),
                )
            panel.set_title(f"{run}: {label}", fontsize=9, loc="left")
            panel.set_xlabel("loss of NDCG@10, %", fontsize=8)
            panel.tick_params(labelsize=8)
            panel.spines[["top", "right"]].set_visible(False)
    handles = axes[0][0].get_legend_handles_labels()
    figure.legend(
        *handles,
        loc="outside lower center",
        ncols=len(COLOURS),
        fontsize=9,
        frameon=False,
    )
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=DIR")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument(
        "--reasons",
        type=int,
        metavar="N",
        help="time lists and reasons of N users, and check them",
    )
    args = parser.parse_args()
    worlds = [
        World(name, Path(folder)) for name, folder in (word.split("=", 1) for word in args.runs)
    ]
    if args.reasons:
        for world in worlds:
            print(
                world.name,
                time_reasons(world, args.reasons),
                check_reasons(world, args.reasons),
                sep="\n",
            )
        return
    found = {world.name: examine(world) for world in worlds}
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        plot(found, args.plot)


if __name__ == "__main__":
    main()
