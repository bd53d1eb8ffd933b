"""What towers under differential privacy reach in order: NDCG@10 by epsilon, beside popularity.

    python tests/benchmarks/private_towers.py DATA/movielens-100k

The unit is a user with all their events. Two towers predict the next item of a sequence: a user is
the faded mean of the vectors of their last items, an item is a vector of a second table, so that no
table is both input and output, and the score is their product plus the item's log popularity. Items
are placed by content alone, genres and decades, which are public: few numbers, so little noise. With
--free each item has a row of its own in both tables.

    popularity   rows of users of length 1 are summed with Gaussian noise, once
    towers       each step draws users, takes the gradient of each user's own mean loss, cuts it to a
                 length of `CLIP`, adds them, and adds Gaussian noise of `noise * CLIP` (Abadi et al.,
                 2016); the loss is over the whole catalogue, so that nobody is another's negative

Epsilon is of both together, by dp-accounting's privacy loss distributions; with --check opacus' RDP
says the same of the steps alone. The last item of a user is the test, never trained on. Sizes and
rate were chosen on the item before it, without noise for that choice: a real release would have to
pay for it. The noise is of a seed, so that the figure repeats; a release must not have one.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.func import grad, vmap

DELTA = 1e-5
EPSILONS = (1.0, 2.0, 4.0, 8.0)
DIM = 16
N_POSITIONS = 16  # events of a user that a step predicts, drawn anew each time
REACH = 20  # items that a user is made of
FADE = 0.8  # weight of an item, of the one after it
CLIP = 0.2  # the median length of the gradients of users without noise, at the start
N_DRAWN = 300  # users of a step, on average: each is drawn apart, by the same chance
STEPS = 40
RATE = 0.02  # of Adam
POPULARITY_NOISE = 2.0  # times the noise of a step; it is released once
K = 10


# ---- data


def read_tables(folder):
    """Return the items of each user in order, (U,) arrays of rows, and the content of items (N, F)."""
    if (folder / "u.data").exists():
        names = ["user_id", "item_id", "rating", "datetime"]
        events = pd.read_csv(folder / "u.data", sep="\t", names=names)
        events = events.sort_values(["user_id", "datetime"], kind="stable")
        items = pd.read_csv(folder / "u.item", sep="|", encoding="latin-1", header=None)
        items = items.set_index(0)
        titles = items[1]
        genres = items.loc[:, 5:]
    else:
        events = pd.read_parquet(folder / "interactions.parquet")
        items = pd.read_csv(folder / "items.csv", index_col="item_id")
        titles = items["title"]
        genres = items["genres"].str.get_dummies("|")
    rows, ids = pd.factorize(events["item_id"], sort=True)
    decades = pd.get_dummies(titles.str.extract(r"\((\d\d\d)\d\)")[0])
    content = pd.concat([genres, decades], axis=1).loc[ids].to_numpy(np.float32)
    content /= np.maximum(np.linalg.norm(content, axis=1, keepdims=True), 1)
    by_user = pd.Series(rows).groupby(events["user_id"].to_numpy())
    return [items_of_user.to_numpy() for _, items_of_user in by_user], content


def draw_examples(sequence, n_items, rng):
    """Return what a user gives to a step: histories (T, H), targets (T,) and weights (T,).

    Args:
        sequence: (n,) their items without the test.
        n_items: of the catalogue; stands for no item.
        rng: draws T of the events.
    """
    histories = np.full((N_POSITIONS, REACH), n_items)
    targets = np.zeros(N_POSITIONS, np.int64)
    weights = np.zeros(N_POSITIONS, np.float32)
    n_drawn = min(N_POSITIONS, len(sequence) - 1)
    places = 1 + rng.choice(len(sequence) - 1, n_drawn, replace=False)
    for row, place in enumerate(places):
        recent = sequence[max(0, place - REACH) : place]
        histories[row, REACH - len(recent) :] = recent
        targets[row] = sequence[place]
        weights[row] = 1 / n_drawn
    return histories, targets, weights


# ---- towers


def make_towers(n_rows, seed):
    """Return the tables of both towers, (F, D) each, or (N, D) where items have rows of their own."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "history": torch.randn(n_rows, DIM, generator=generator) * DIM**-0.5,
        "item": torch.zeros(n_rows, DIM),
    }


def score(towers, known, histories):
    """Return the scores of all items, (T, N).

    Args:
        towers: what is learned.
        known: what is not: log popularity (N,), and content (N, F) or None.
        histories: (T, H) rows of items; N where there is none.
    """
    bias, content = known
    vectors = {
        name: table if content is None else content @ table for name, table in towers.items()
    }
    fading = FADE ** torch.arange(REACH - 1, -1, -1.0)  # (H,)
    is_item = histories < len(bias)  # (T, H)
    weights = fading * is_item
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
    rows = histories.clamp(max=len(bias) - 1)
    users = (weights[..., None] * vectors["history"][rows]).sum(dim=1)  # (T, D)
    return users @ vectors["item"].T + bias


def lose(towers, known, histories, targets, weights):
    """Return the loss of one user: cross-entropy over the catalogue, mean over their events."""
    losses = -torch.log_softmax(score(towers, known, histories), dim=1)  # (T, N)
    return (weights * losses.gather(1, targets[:, None])[:, 0]).sum()


def sum_clipped(towers, known, batch, clip):
    """Return the sum over users of their gradients, each cut to a length.

    Args:
        towers: the tables.
        known: as for `score`.
        batch: histories (B, T, H), targets (B, T) and weights (B, T) of B users.
        clip: the greatest length; None: gradients stay as they are.
    """
    gradients = vmap(grad(lose), in_dims=(None, None, 0, 0, 0))(
        towers, known, *batch
    )  # (B, ...) each
    if clip is None:
        return {name: of_users.sum(dim=0) for name, of_users in gradients.items()}
    squares = sum(of_users.flatten(1).square().sum(dim=1) for of_users in gradients.values())
    scales = (clip / squares.sqrt().clamp(min=1e-12)).clamp(max=1)  # (B,)
    return {
        name: torch.einsum("b,b...->...", scales, of_users) for name, of_users in gradients.items()
    }


def train(sequences, n_items, content, noise, seed, clip=CLIP, n_at_once=64):
    """Return towers and log popularity; without noise (0) nothing is added to popularity either."""
    rng = np.random.default_rng(seed)
    share = find_share(len(sequences))
    deviation = POPULARITY_NOISE * noise
    popularity = count_users(sequences, n_items) + rng.normal(0, deviation, n_items)
    bias = np.log(np.maximum(popularity, max(0.1, deviation)))
    known = (torch.as_tensor(bias, dtype=torch.float32), content)
    towers = make_towers(n_items if content is None else content.shape[1], seed)
    optimizer = torch.optim.Adam(towers.values(), lr=RATE)
    for _ in range(STEPS):
        drawn = np.flatnonzero(rng.random(len(sequences)) < share)  # each user apart
        total = {name: torch.zeros_like(table) for name, table in towers.items()}
        for start in range(0, len(drawn), n_at_once):
            users = drawn[start : start + n_at_once]
            examples = [draw_examples(sequences[user], n_items, rng) for user in users]
            batch = [torch.as_tensor(np.stack(part)) for part in zip(*examples, strict=True)]
            for name, part in sum_clipped(towers, known, batch, clip).items():
                total[name] += part
        for name, table in towers.items():
            added = rng.normal(0, noise * (clip or 0), table.shape)
            noised = total[name] + torch.as_tensor(added, dtype=torch.float32)
            table.grad = noised / (share * len(sequences))
        optimizer.step()
    return towers, known


def find_share(n_users):
    """Return the chance of each user to be drawn in a step; how many there are is public."""
    return min(1.0, N_DRAWN / n_users)


def count_users(sequences, n_items):
    """Return the sum of the users' rows, each divided by its length, (N,)."""
    counts = np.zeros(n_items)
    for sequence in sequences:
        items = np.unique(sequence)
        counts[items] += 1 / np.sqrt(len(items))
    return counts


# ---- privacy


def list_releases(noise, share):
    """Return all that touches people: popularity once, and the steps."""
    from dp_accounting import dp_event

    step = dp_event.PoissonSampledDpEvent(share, dp_event.GaussianDpEvent(noise))
    return dp_event.ComposedDpEvent(
        [
            dp_event.GaussianDpEvent(POPULARITY_NOISE * noise),
            dp_event.SelfComposedDpEvent(step, STEPS),
        ]
    )


def measure_epsilon(noise, share):
    """Return the epsilon of everything for a noise, at `DELTA`."""
    from dp_accounting import pld

    accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
    return accountant.compose(list_releases(noise, share)).get_epsilon(DELTA)


def find_noise(epsilon, share):
    """Return the least noise of an epsilon, to a hundredth."""
    low, high = 0.3, 64.0
    while high - low > 0.01:
        middle = (low + high) / 2
        if measure_epsilon(middle, share) > epsilon:
            low = middle
        else:
            high = middle
    return high


# ---- figures


def measure(sequences, score_all):
    """Return NDCG@10 of each user's last item among all that they do not have, (U,)."""
    gains = np.zeros(len(sequences))
    for user, sequence in enumerate(sequences):
        *known, target = sequence.tolist()
        scores = score_all(known)
        scores[known] = -np.inf
        rank = int((scores > scores[target]).sum()) if target not in known else K
        gains[user] = 1 / np.log2(rank + 2) if rank < K else 0.0
    return gains


def score_by(towers, known):
    def score_all(items):
        recent = items[-REACH:]
        history = [len(known[0])] * (REACH - len(recent)) + recent
        with torch.no_grad():
            return score(towers, known, torch.tensor([history]))[0].numpy()

    return score_all


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epsilons", type=float, nargs="*", default=EPSILONS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--free", action="store_true", help="rows of items instead of content")
    parser.add_argument("--validate", action="store_true", help="leave the tests alone")
    parser.add_argument("--check", action="store_true", help="ask opacus as well")
    words = parser.parse_args()
    torch.set_num_threads(1)

    sequences, content = read_tables(words.data)
    n_items = len(content)
    content = None if words.free else torch.as_tensor(content)
    sequences = [sequence for sequence in sequences if len(sequence) > 3]
    if words.validate:
        sequences = [sequence[:-1] for sequence in sequences]
    known = [sequence[:-1] for sequence in sequences]
    popularity = count_users(known, n_items)
    base = measure(sequences, lambda _: popularity.copy())
    print(f"{len(sequences):,} users, {n_items:,} items; popularity {base.mean():.4f}", flush=True)

    share = find_share(len(known))
    settings = [("no privacy", 0.0, None), ("clipped alone", 0.0, CLIP)]
    for epsilon in words.epsilons:
        settings.append((f"epsilon {epsilon:g}", find_noise(epsilon, share), CLIP))
    for name, noise, clip in settings:
        means = []
        for seed in range(words.seeds):
            towers, fixed = train(known, n_items, content, noise, seed, clip)
            means.append(measure(sequences, score_by(towers, fixed)).mean())
        row = {"noise": round(noise, 3), "NDCG@10": np.round(means, 4).tolist()}
        if noise:
            row["epsilon"] = round(measure_epsilon(noise, share), 3)
        if noise and words.check:
            row["steps alone, opacus"] = round(ask_opacus(noise, share), 3)
        ratio = np.mean(means) / base.mean()
        print(
            f"{name}: {np.mean(means):.4f} ({ratio:.2f} of popularity) {json.dumps(row)}",
            flush=True,
        )


def ask_opacus(noise, share):
    """Return the epsilon of the steps alone by the RDP accountant of opacus."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(noise, share, STEPS)]
    return accountant.get_epsilon(DELTA)


if __name__ == "__main__":
    main()
