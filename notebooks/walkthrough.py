# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A walk through Bascule
#
# Three tables become recommendations: we train a small model on a part of the bundled grocery
# data, look at what the data was, and ask for somebody we know, somebody new, and something new.
#
# Run it as a notebook (`jupytext --to notebook --execute notebooks/walkthrough.py`) or as a
# script (`python notebooks/walkthrough.py`); it takes about a minute.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bascule

# %% [markdown]
# ## Three DataFrames
#
# The sample has 2,469 households. Those with numbers up to 300, and the products they bought
# most, will do here.

# %%
SAMPLE = Path(bascule.__file__).parents[1] / "datamodules" / "sample"
events = pd.read_parquet(
    SAMPLE / "interactions.parquet",
    columns=["user_id", "item_id", "datetime", "weight"],
)
users = pd.read_parquet(SAMPLE / "users.parquet")
items = pd.read_parquet(SAMPLE / "items.parquet")

events = events[events["user_id"] <= 300]
frequent = events["item_id"].value_counts().head(1000).index
events = events[events["item_id"].isin(frequent)]
users = users[users["user_id"] <= 300]
items = items[items["item_id"].isin(frequent)]
print(
    f"{len(events):,} purchase lines, {len(users)} households, {len(items):,} products"
)

# %% [markdown]
# ## Train
#
# What is declared: which columns are features, that December is the test, that the lines of a
# basket came at once, and that a product may be bought again. Everything else is fitted.

# %%
recommender = bascule.fit(
    events,
    users,
    items,
    features={
        "user": dict.fromkeys(["age", "income", "kids_count"], "categorical"),
        "item": dict.fromkeys(
            ["department", "category", "type", "brand"], "categorical"
        ),
    },
    split={"kind": "time", "at": "2017-12-01"},
    ties="simultaneous",
    repeats="allow",
    history_length=20,
    out="runs/walkthrough",
    overwrite=True,
    quiet=True,
)

# %% [markdown]
# ## How good is it?
#
# Every figure was measured on the exported bundle, over the whole catalogue, beside baselines
# tuned on the same validation. The run also leaves `report.html`, with intervals, slices,
# examples and a map.

# %%
test = recommender.metrics["test"]
results = pd.DataFrame(
    {
        view: {model: views[view]["NDCG@20"] for model, views in test.items()}
        for view in ("all", "repeat", "novel")
    }
)
print(results.round(4).to_string())

# %% [markdown]
# ## Recommend
#
# The bundle answers without torch.

# %%
household = int(users.dropna()["user_id"].iloc[0])
print(recommender.recommend(household, k=5))

# %% [markdown]
# Only what this household has never bought:

# %%
print(recommender.recommend(household, k=5, repeats="exclude"))

# %% [markdown]
# ## Similar products

# %%
product = int(events["item_id"].value_counts().index[3])
print(recommender.similar_items(product, k=5))

# %% [markdown]
# ## Somebody new, known by demographics alone
#
# No history, no id: the request says what is known. The same household with three products in the
# basket (request 1) is asked for in the same way; nothing is trained again.

# %%
newcomer = {"features": {"age": "25-34", "kids_count": "2"}}
basket = [int(item) for item in frequent[5:8]]
print(recommender.recommend([newcomer, {**newcomer, "history": basket}], k=5))

# %% [markdown]
# ## Something new, known by content alone
#
# A product that nobody has bought is placed by its features. Its neighbours say whether the place
# makes sense.

# %%
launch = {
    "department": "GROCERY",
    "category": "SOFT DRINKS",
    "type": "SOFT DRINKS 12/18&15PK CAN CAR",
    "brand": "National",
}
print(recommender.similar_items(launch, k=5))

# %% [markdown]
# ## The map
#
# The item vectors in their two main directions. Products of one department lie together: it is
# one of the features that the vectors are made of, beside who bought what.

# %%
bought = np.unique(events["item_id"])
vectors = recommender.encode_items(bought)
centred = vectors - vectors.mean(axis=0)
_, _, directions = np.linalg.svd(centred, full_matrices=False)
places = centred @ directions[:2].T
department = items.set_index("item_id")["department"].reindex(bought).fillna("unknown")
figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
for name in department.value_counts().index[:6]:
    axes.scatter(*places[department == name].T, s=8, alpha=0.7, label=name.title())
axes.set(
    xlabel="first direction", ylabel="second direction", title="Products by department"
)
axes.legend(markerscale=2, frameon=False)
figure.savefig(recommender.path.parent / "map.svg")
plt.show()
