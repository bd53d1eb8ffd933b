"""Who was in the training? True positives at 1 % false ones, of lists, vectors and weights apart.

    python tests/benchmarks/membership.py ../shared/data/movielens-100k --shadows 32 --out runs/shadows

Each shadow is a quick run on a random half of the users (--epsilon: a private one). The attacker
knows all items of a person, and sees one output of the bundle:

    lists     a half of the items is asked about; how high the other half stands, mean of 1 / rank
    vectors   mean cosine of the vectors of pairs of the items
    weights   mean item-item weight between the items, rare ones counting more

For each person the attacker knows these numbers of the other shadows, with and without them, and
compares the likelihoods of both normal distributions (Carlini et al., "Membership Inference Attacks
From First Principles", 2022). A shadow is never its own reference. One JSON per shadow is kept, so
that an interrupted measurement goes on; --report alone judges what is there. The interval is drawn
over shadows, since all guesses about one shadow share its training.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from datamodules.config import DataConfig, FeaturesConfig, SplitConfig
from pipeline.config import Config, PrivacyConfig
from pipeline.run import run
from serve.bundle import Bundle
from serve.recommender import Recommender

OUTPUTS = ("lists", "vectors", "weights")
DATA = DataConfig(features=FeaturesConfig(item={"title": "text"}), split=SplitConfig("none"))
K = 100
FALSE_POSITIVES = 0.01
MIN_DEVIATION = 1e-9
N_RESAMPLES = 500


def read_frames(folder):
    names = ["user_id", "item_id", "rating", "timestamp"]
    events = pd.read_csv(folder / "u.data", sep="\t", names=names)
    items = pd.read_csv(folder / "u.item", sep="|", encoding="latin-1", header=None)
    return events[names[:2]], items[[0, 1]].set_axis(["item_id", "title"], axis=1)


def train_shadow(events, items, number, folder, epsilon):
    """Train on a half of the users, and return who they are and the outputs for everybody."""
    user_ids = np.unique(events["user_id"])
    is_member = np.random.default_rng(number).random(len(user_ids)) < 0.5
    rows = events[events["user_id"].isin(user_ids[is_member])]
    config = Config(
        data=DATA, out=folder, quick=True, overwrite=True, privacy=PrivacyConfig(epsilon)
    )
    made = run(config, (rows, None, items))
    outputs = read_outputs(Bundle.load(made.bundle), events)
    shutil.rmtree(folder)
    return {"is_member": is_member.tolist(), **outputs}


def read_outputs(bundle, events):
    """Return the three numbers of each user, in the order of their ids."""
    recommender = Recommender(bundle)
    ids = pd.Index(bundle.items.column("item_id").to_pylist())
    vectors = bundle.vectors / np.maximum(
        np.linalg.norm(bundle.vectors, axis=1, keepdims=True), 1e-12
    )
    weights = read_weights(bundle)
    share = 1 / np.log2(2 + events.groupby("item_id").size())  # what anybody may know
    outputs = {name: [] for name in OUTPUTS}
    histories = [
        mine[mine.isin(ids)].to_numpy() for _, mine in events.groupby("user_id")["item_id"]
    ]
    for known in histories:
        rows = ids.get_indexer(known)
        outputs["vectors"].append(mean_of_pairs(vectors[rows] @ vectors[rows].T))
        rarity = share[known].to_numpy()
        of_pairs = weights[np.ix_(rows, rows)] * np.outer(rarity, rarity)
        outputs["weights"].append(mean_of_pairs(of_pairs))
    requests = [
        {"history": [{"item_id": item} for item in known[::2].tolist()]} for known in histories
    ]
    for known, answer in zip(histories, recommender.recommend(requests, K), strict=True):
        outputs["lists"].append(rank_other_half(answer.item_id, known[1::2]))
    return outputs


def read_weights(bundle):
    """Return the dense item-item weights, (N, N)."""
    neighbours = bundle.neighbours
    n_items = len(neighbours.offsets) - 1
    weights = np.zeros((n_items, n_items), np.float32)
    counts = np.diff(neighbours.offsets)
    owners = np.repeat(np.arange(n_items), counts)
    weights[owners, neighbours.rows[: len(owners)]] = neighbours.weights[: len(owners)]
    return weights


def mean_of_pairs(values):
    n = len(values)
    return float((values.sum() - np.trace(values)) / max(n * (n - 1), 1))


def rank_other_half(listed, others):
    """Return the mean of 1 / rank of the other items of somebody."""
    is_right = np.isin(listed, others)
    places = np.arange(1, len(listed) + 1)
    return float((is_right / places).sum() / max(len(others), 1))


def compare_likelihoods(values, is_member):
    """Return the log likelihood ratio of each shadow and user, (S, U), from the other shadows."""
    ratios = np.zeros(values.shape)
    for shadow in range(len(values)):
        others = np.delete(values, shadow, axis=0)
        inside = np.delete(is_member, shadow, axis=0)
        mean_in, deviation = describe(others, inside)
        mean_out, deviation_out = describe(others, ~inside)
        spread = np.maximum((deviation + deviation_out) / 2, MIN_DEVIATION)
        far = (values[shadow] - mean_out) ** 2 - (values[shadow] - mean_in) ** 2
        ratios[shadow] = far / (2 * spread**2)
    return np.nan_to_num(ratios)


def describe(values, is_there):
    counts = np.maximum(is_there.sum(axis=0), 1)
    mean = (values * is_there).sum(axis=0) / counts
    variance = ((values - mean) ** 2 * is_there).sum(axis=0) / np.maximum(counts - 1, 1)
    return mean, np.sqrt(variance)


def find_true_positives(ratios, is_member):
    """Return the share of members above the threshold that 1 % of the others exceed."""
    others = np.sort(ratios[~is_member])[::-1]
    n_false = int(FALSE_POSITIVES * len(others))
    return float((ratios[is_member] > others[n_false]).mean())


def report(folder):
    shadows = [json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))]
    if len(shadows) < 4:
        raise SystemExit(f"{folder} holds {len(shadows)} shadows; at least 4 are needed")
    is_member = np.array([shadow["is_member"] for shadow in shadows])
    rng = np.random.default_rng(0)
    print(f"{len(shadows)} shadows, {is_member.shape[1]} users, true positives at 1 % false ones")
    for name in OUTPUTS:
        values = np.array([shadow[name] for shadow in shadows])
        ratios = compare_likelihoods(values, is_member)
        found = find_true_positives(ratios, is_member)
        draws = rng.integers(len(shadows), size=(N_RESAMPLES, len(shadows)))
        drawn = [find_true_positives(ratios[draw], is_member[draw]) for draw in draws]
        low, high = np.quantile(drawn, [0.025, 0.975])
        print(f"{name:8} {found:.2%}  ({low:.2%} to {high:.2%})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/shadows"))
    parser.add_argument("--shadows", type=int, default=32)
    parser.add_argument("--epsilon", type=float)
    parser.add_argument("--report", action="store_true")
    words = parser.parse_args()
    events, items = read_frames(words.data)
    words.out.mkdir(parents=True, exist_ok=True)
    for number in () if words.report else range(words.shadows):
        path = words.out / f"{number:03d}.json"
        if not path.exists():
            shadow = train_shadow(events, items, number, words.out / "run", words.epsilon)
            path.write_text(json.dumps(shadow))
    report(words.out)


if __name__ == "__main__":
    main()
