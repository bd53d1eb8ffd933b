"""Leaks to be found, and honest columns that look a little like them."""

from __future__ import annotations

import numpy as np
import pandas as pd

PLANTED = {"sku": "categorical", "receipt": "categorical", "paid": "numeric", "bought_for": "numeric"}
"""A renamed item; a word that the item decides but for one event in eight; the price with its discounts; a price that
exists for bought events alone."""
HONEST = {
    "device": "categorical",
    "city": "categorical",
    "store": "categorical",
    "session": "categorical",
    "mood": "categorical",
    "day": "numeric",
    "noise": "numeric",
}


def plant(events: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Add an event type and the planted columns."""
    item, items = pd.factorize(events["item_id"], sort=True)
    n = len(events)
    price = np.round(np.exp(rng.normal(1, 1, len(items))), 2)[item]
    words = np.array(["aisle", "shelf", "stand", "till"])
    is_bought = rng.random(n) < 0.3
    return events.assign(
        event=np.where(is_bought, "buy", "view"),
        sku=np.array([f"sku-{number}" for number in rng.permutation(len(items))])[item],
        receipt=np.where(rng.random(n) < 1 / 6, rng.choice(words, n), words[rng.integers(0, 4, len(items))[item]]),
        paid=np.round(price * rng.choice([1, 1, 1, 0.9, 0.8, 0.5], n), 2),
        bought_for=np.where(is_bought, price, np.nan),
    )


def add_honest(events: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Add columns of the user, of the visit and of the moment, and one that leans to some items."""
    user, users = pd.factorize(events["user_id"], sort=True)
    item, items = pd.factorize(events["item_id"], sort=True)
    n = len(events)
    leaning = np.where(rng.random(len(items)) < 0.5, 0.4, 0.6)[item]
    visit = events["datetime"] // 86_400 if "datetime" in events else np.arange(n) // 3
    return events.assign(
        device=np.where(rng.random(n) < 0.9, user % 3, rng.integers(0, 3, n)).astype("str"),
        city=rng.integers(0, 90, len(users))[user].astype("str"),
        store=((user * 7 + visit % 2) % 41).astype("str"),
        session=[f"{one}-{another}" for one, another in zip(user, visit, strict=True)],
        mood=np.where(rng.random(n) < leaning, "happy", "sad"),
        day=np.asarray(visit, np.float64),
        noise=rng.normal(size=n),
    )
