"""What differential privacy costs: NDCG@10 by epsilon, beside no privacy and popularity.

    python tests/benchmarks/private.py DATA/movielens-1m --out runs/private

The folder holds interactions.parquet, users.csv and items.csv. Events are read as sets, a share of
each user's items is the test. Each run is kept in its folder and not made again; the noise of a
run is fresh, so that repeats of one epsilon show its spread. --quick makes the run without
privacy a quick one, and tests everything on 1,024 users.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

import pandas as pd
from datamodules.config import DataConfig, FeaturesConfig, SplitConfig
from pipeline.config import Config, EvaluationConfig, PrivacyConfig
from pipeline.run import run

METRIC = "NDCG@10"
FEATURES = FeaturesConfig(item={"title": "text", "genres": "multi_categorical"})
DATA = DataConfig(features=FEATURES, split=SplitConfig("pairs"))


def read_frames(folder):
    interactions = pd.read_parquet(folder / "interactions.parquet")
    users = pd.read_csv(folder / "users.csv")
    return interactions[["user_id", "item_id"]], users, pd.read_csv(folder / "items.csv")


def measure(frames, folder, epsilon, seed, is_quick):
    """Return the metrics of one run; without epsilon also those of EASE."""
    config = Config(
        data=DATA,
        out=folder,
        seed=seed,
        resume=True,
        quick=is_quick,
        privacy=PrivacyConfig(epsilon),
        evaluation=EvaluationConfig(["popularity"] + ["ease"] * (epsilon is None)),
        trainer={"enable_progress_bar": False},
    )
    run(config, frames)
    return json.loads((folder / "metrics.json").read_bytes())


def list_figures(content):
    """Return NDCG of all, and of each slice by activity: what each loses is in its own column."""
    (view, ours), *_ = content["test"]["bascule"].items()
    figures = {"all": ours[METRIC]}
    for label, summary in content["slices"][view]["history"].items():
        figures[f"{label} events"] = summary[METRIC]
    return figures


def print_rows(rows, reference):
    names = list(reference)
    popularity = rows["popularity"][0]["all"]
    print("| epsilon | x popularity | " + " | ".join(names) + " |")
    for name, repeats in rows.items():
        cells = [f"{mean(figures['all'] for figures in repeats) / popularity:.2f}"]
        for slice_name in names:
            values = [figures[slice_name] for figures in repeats if slice_name in figures]
            if not values:
                cells.append("-")
                continue
            spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
            share = mean(values) / max(reference[slice_name], 1e-9)
            cells.append(f"{mean(values):.4f}{spread} ({share:.2f})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/private"))
    parser.add_argument("--epsilons", type=float, nargs="*", default=[1.0, 2.0, 4.0, 8.0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    words = parser.parse_args()
    frames = read_frames(words.data)

    plain = measure(frames, words.out / "none", None, 0, words.quick)
    reference = list_figures(plain)
    rows = {"none": [reference]}
    (view, *_) = plain["test"]["bascule"]
    for name in ("ease", "popularity"):
        rows[name] = [{"all": plain["test"][name][view][METRIC]}]
    for epsilon in words.epsilons:
        folders = [words.out / f"{epsilon:g}-{repeat}" for repeat in range(words.repeats)]
        runs = [measure(frames, folder, epsilon, 0, words.quick) for folder in folders]
        rows[f"{epsilon:g}"] = [list_figures(content) for content in runs]

    print_rows(rows, reference)
    summary = {"rows": rows, "metric": METRIC}
    (words.out / "private.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
