"""Who was in the training? True positives at 1 % false ones, of lists, vectors and weights apart.

    python tests/benchmarks/membership.py DATA/movielens-100k --shadows 32 --out runs/shadows
    python tests/benchmarks/membership.py DATA/movielens-100k --epsilon 8 --out runs/shadows-8

Each shadow is trained on a random half of the users: towers and item-item weights by one recipe,
that which the validation of a whole run chose, or with --epsilon a private run. A training without a
floor of people serves both settings: weights between items that fewer than five of its users took
are taken out of the bundle afterwards, as `model.min_users: 5` does.

The attacker knows all items of a person and how many people took each pair of items, and sees one
output of a bundle. From each output they make several numbers, of which the best attack counts:

    lists     each half of the items is asked about: how high the other half stands, rare items more
    vectors   mean cosine of the vectors of pairs of the items, rare pairs more
    weights   mean item-item weight between the items, rare pairs more

"Rare" is a power of one over how many others took the item or the pair. For each person the
attacker knows these numbers of the other shadows, with and without them, and compares the
likelihoods of both normal distributions (Carlini et al., "Membership Inference Attacks From First
Principles", 2022), whose variance is the mean of the person's own and of everybody's. A shadow is
never its own reference. The best of several numbers is taken in sight of the result, in the
attacker's favour. One JSON per shadow is kept, so that an interrupted measurement goes on; --report
alone judges what is there. Intervals are drawn over shadows, since all guesses about one shadow
share its training.
"""

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import scipy.sparse as sp

sys.path.insert(0, str(Path(__file__).parents[2]))

from datamodules.config import DataConfig, FeaturesConfig, SplitConfig
from models.refine import Limits, Refinement, apply
from pipeline.config import Config, PrivacyConfig
from pipeline.run import run
from serve.bundle import Bundle
from serve.index import Neighbours
from serve.recommender import Recommender

from pipeline import stages

DATA = DataConfig(features=FeaturesConfig(item={"title": "text"}), split=SplitConfig("none"))
EPOCHS = 6  # of the towers, as a whole run on a half of the users chose
ALPHAS = {"ease": 0.4, "plateau": 0.4}  # as that run chose
TOP_K = 1024
FLOOR = 5
K = 100
POWERS = (0.0, 1.0, 2.0, 4.0)  # of rarity
FALSE_POSITIVES = 0.01
MIN_DEVIATION = 1e-9
OWN_WEIGHT = 0.5  # of a person's own variance, beside everybody's
N_RESAMPLES = 500


def read_frames(folder):
    names = ["user_id", "item_id", "rating", "timestamp"]
    events = pd.read_csv(folder / "u.data", sep="\t", names=names)
    items = pd.read_csv(folder / "u.item", sep="|", encoding="latin-1", header=None)
    return events[names[:2]], items[[0, 1]].set_axis(["item_id", "title"], axis=1)


# ---- shadows


def train_by_recipe(work, seconds):
    """Train towers for some epochs, and add item-item weights, without a floor of people."""
    whole = replace(work, config=replace(work.config, quick=False))
    data = stages.make_last_data(whole)
    model = stages.make_model(whole.recipe, data, whole.config.seed)
    trained = stages.fit_stage(whole, data, "final", model, EPOCHS)
    refinement = Refinement(ALPHAS)
    apply(refinement, trained.towers, data, Limits(TOP_K, 1), whole.config.seed)
    return replace(trained, refinement=refinement)


def train_shadow(events, items, number, folder, epsilon):
    """Train on a half of the users, and return who they are and the outputs for everybody."""
    user_ids = np.unique(events["user_id"])
    is_member = np.random.default_rng(number).random(len(user_ids)) < 0.5
    rows = events[events["user_id"].isin(user_ids[is_member])]
    # a quick run has no segments, which nobody attacks here
    config = Config(
        data=DATA,
        out=folder,
        quick=True,
        overwrite=True,
        privacy=PrivacyConfig(epsilon),
        trainer={"enable_progress_bar": False},
    )
    with patch.object(stages, "train", train_by_recipe):
        made = run(config, (rows, None, items))
    bundle = Bundle.load(made.bundle)
    item_ids = pd.Index(bundle.items.column("item_id").to_pylist())
    everybody = to_matrix(events, user_ids, item_ids)
    outputs = read_outputs(bundle, everybody)
    if epsilon is None:
        members = to_matrix(rows, user_ids, item_ids)
        floored = read_outputs(put_floor(bundle, members), everybody)
        del floored["vectors"]  # which a floor does not change
        outputs |= {f"{name}, floor of {FLOOR}": values for name, values in floored.items()}
    shutil.rmtree(folder)
    return {"is_member": is_member.tolist(), "outputs": outputs}


def to_matrix(events, user_ids, item_ids):
    """Return the binary interactions of users and items of a catalogue, (U, N)."""
    rows = np.searchsorted(user_ids, events["user_id"])
    columns = item_ids.get_indexer(events["item_id"])
    is_listed = columns >= 0
    cells = (rows[is_listed], columns[is_listed])
    shape = (len(user_ids), len(item_ids))
    matrix = sp.csr_array((np.ones(is_listed.sum(), np.float32), cells), shape)
    matrix.data[:] = 1
    return matrix


def put_floor(bundle, members):
    """Return a bundle without the weights of pairs that fewer than `FLOOR` of its users took."""
    weights = read_weights(bundle)
    weights = weights * ((members.T @ members).toarray() >= FLOOR)
    cut = sp.csr_array(weights)
    old = bundle.neighbours
    new = Neighbours(cut.indptr.astype(np.int64), cut.indices, cut.data, old.decay)
    return replace(bundle, neighbours=new)


def read_weights(bundle):
    """Return the dense item-item weights, (N, N)."""
    neighbours = bundle.neighbours
    n_items = len(neighbours.offsets) - 1
    weights = np.zeros((n_items, n_items), np.float32)
    counts = np.diff(neighbours.offsets)
    owners = np.repeat(np.arange(n_items), counts)
    weights[owners, neighbours.rows[: len(owners)]] = neighbours.weights[: len(owners)]
    return weights


# ---- what the attacker reads


def read_outputs(bundle, matrix):
    """Return the numbers of each output by power of rarity, for each user: (P, U) as lists.

    Args:
        bundle: what the attacker sees.
        matrix: what they know of everybody, (U, N).
    """
    lengths = np.linalg.norm(bundle.vectors, axis=1, keepdims=True)
    vectors = bundle.vectors / np.maximum(lengths, 1e-12)
    others_of_pair = (matrix.T @ matrix).toarray() - 1  # (N, N) but that person
    tables = {"vectors": vectors @ vectors.T, "weights": read_weights(bundle)}
    outputs = {}
    for name, table in tables.items():
        outputs[name] = []
        for power in POWERS:
            rarity = (1 + np.maximum(others_of_pair, 0)) ** -power
            np.fill_diagonal(rarity, 0)
            outputs[name].append(mean_of_pairs(matrix, table, rarity))
    outputs["lists"] = rank_other_halves(Recommender(bundle), matrix)
    return outputs


def mean_of_pairs(matrix, table, rarity):
    """Return the weighted mean of a table over all pairs of each user's items."""
    sums = matrix.multiply(matrix @ (table * rarity)).sum(axis=1)  # (U,)
    totals = matrix.multiply(matrix @ rarity).sum(axis=1)  # (U,)
    return (np.asarray(sums) / np.maximum(np.asarray(totals), 1e-12)).tolist()


def rank_other_halves(recommender, matrix):
    """Return how high the items stand that are not asked with, by power of rarity."""
    ids = recommender.catalogue.item_ids.ids
    items_of_users = np.split(matrix.indices, matrix.indptr[1:-1])
    n_others = np.maximum(np.asarray(matrix.sum(axis=0)) - 1, 0)  # (N,) but that person
    scores = np.zeros((len(POWERS), len(items_of_users)))
    for half in (0, 1):
        requests = [
            {"history": [{"item_id": item} for item in ids[items[half::2]].tolist()]}
            for items in items_of_users
        ]
        answers = recommender.recommend(requests, K)
        for user, answer in enumerate(answers):
            asked = set(items_of_users[user][1 - half :: 2].tolist())
            rows = recommender.catalogue.item_ids.require(answer.item_id.tolist())
            is_theirs = np.array([row in asked for row in rows.tolist()])
            gains = is_theirs / np.arange(1, len(rows) + 1)
            for place, power in enumerate(POWERS):
                rarity = (1 + n_others[rows]) ** -power
                scores[place, user] += (gains * rarity).sum()
    return scores.tolist()


# ---- who was in


def compare_likelihoods(values, is_member):
    """Return the log likelihood ratio of each shadow and user, (S, U), from the other shadows."""
    ratios = np.zeros(values.shape)
    for shadow in range(len(values)):
        others = np.delete(values, shadow, axis=0)
        inside = np.delete(is_member, shadow, axis=0)
        mean_in, variance_in = describe(others, inside)
        mean_out, variance_out = describe(others, ~inside)
        own = (variance_in + variance_out) / 2
        distance = mean_in - mean_out
        # Scales of people differ: everybody's variance is in units of the own distance.
        share = np.median(own / np.maximum(distance**2, MIN_DEVIATION))
        variance = OWN_WEIGHT * own + (1 - OWN_WEIGHT) * share * distance**2
        far = (values[shadow] - mean_out) ** 2 - (values[shadow] - mean_in) ** 2
        ratios[shadow] = far / (2 * np.maximum(variance, MIN_DEVIATION**2))
    return np.nan_to_num(ratios)


def describe(values, is_there):
    counts = np.maximum(is_there.sum(axis=0), 1)
    mean = (values * is_there).sum(axis=0) / counts
    variance = ((values - mean) ** 2 * is_there).sum(axis=0) / np.maximum(counts - 1, 1)
    return mean, variance


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
    draws = rng.integers(len(shadows), size=(N_RESAMPLES, len(shadows)))
    print(f"{len(shadows)} shadows, {is_member.shape[1]} users, true positives at 1 % false ones")
    for name in shadows[0]["outputs"]:
        values = np.array([shadow["outputs"][name] for shadow in shadows])  # (S, P, U)
        attacks = [compare_likelihoods(values[:, place], is_member) for place in range(len(POWERS))]
        attacks.append(sum(attacks))  # all of them together
        rates = [find_true_positives(ratios, is_member) for ratios in attacks]
        best = attacks[int(np.argmax(rates))]
        drawn = [find_true_positives(best[draw], is_member[draw]) for draw in draws]
        low, high = np.quantile(drawn, [0.025, 0.975])
        each = ", ".join(f"{rate:.2%}" for rate in rates)
        print(f"{name:20} {max(rates):.2%}  ({low:.2%} to {high:.2%}); each {each}", flush=True)


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
