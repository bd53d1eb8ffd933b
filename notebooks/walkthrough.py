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
# Three tables become recommendations: we train a small model on a part of the bundled grocery data, look at what the
# data was, and ask for somebody we know, somebody new, and something new.
#
# Run it as a notebook (`jupytext --to notebook --execute notebooks/walkthrough.py`) or as a script
# (`python notebooks/walkthrough.py`); it takes about a minute.

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import datamodules

PROJECT = Path(datamodules.__file__).parents[1]
sys.path.insert(0, str(PROJECT))  # train.py is a script beside the packages

from datamodules.config import DataConfig, FeaturesConfig, SplitConfig
from serve import Recommender
from train import Config, run

# %% [markdown]
# ## Three DataFrames
#
# The sample has 2,469 households. Those with numbers up to 300, and the products they bought most, will do here.

# %%
SAMPLE = PROJECT / "datamodules" / "sample"
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
# What is declared: which columns are features, that December is the test, that the lines of a basket came at once, and
# that a product may be bought again. Everything else is fitted.

# %%
config = Config(
    data=DataConfig(
        features=FeaturesConfig(
            user={
                "age": "categorical",
                "income": "categorical",
                "kids_count": "categorical",
            },
            item={
                "department": "categorical",
                "category": "categorical",
                "type": "categorical",
                "brand": "categorical",
            },
        ),
        split=SplitConfig("time", at="2017-12-01"),
        ties="simultaneous",
        repeats="allow",
        history_length=20,
    ),
    trainer={"enable_progress_bar": False},
    out=Path("runs/walkthrough"),
    overwrite=True,
)
finished = run(config, (events, users, items))

# %% [markdown]
# ## How good is it?
#
# Every figure was measured on the exported bundle, over the whole catalogue, beside baselines tuned on the same
# validation. The run also leaves `report.html`, with intervals, slices, examples and a map.

# %%
test = finished.metrics["test"]
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
# The bundle answers without torch. Readable names come from the items table.

# %%
recommender = Recommender.load(finished.bundle)
described = items.set_index("item_id")
names = (described["type"] + ", " + described["size"].fillna("")).str.strip(", ")


def show(answers):
    """Write each answer as a line: the products in their order."""
    for number, answer in enumerate(answers, start=1):
        print(f"{number}.", " | ".join(names.reindex(answer.item_id)))


household = int(users.dropna()["user_id"].iloc[0])
show(recommender.recommend([{"user_id": household}], k=5))

# %% [markdown]
# Only what this household has never bought:

# %%
show(recommender.recommend([{"user_id": household}], k=5, filter_viewed=True))

# %% [markdown]
# ## Similar products

# %%
product = int(events["item_id"].value_counts().index[3])
ids, cosines = recommender.similar_items(product, k=5)
print(f"like {names[product]}:")
print(
    pd.DataFrame(
        {"product": names.reindex(ids).to_numpy(), "cosine": cosines}
    ).to_string(index=False)
)

# %% [markdown]
# ## Somebody new, known by demographics alone
#
# No history, no id: the request says what is known. The same household with three products in the basket (2.) is
# asked for in the same way; nothing is trained again.

# %%
newcomer = {"features": {"age": "25-34", "kids_count": "2"}}
basket = [{"item_id": int(item)} for item in frequent[5:8]]
show(recommender.recommend([newcomer, {**newcomer, "history": basket}], k=5))

# %% [markdown]
# ## Something new, known by content alone
#
# A product that nobody has bought is placed by its features. Its neighbours say whether the place makes sense.

# %%
launch = {
    "department": "GROCERY",
    "category": "SOFT DRINKS",
    "type": "SOFT DRINKS 12/18&15PK CAN CAR",
    "brand": "National",
}
(vector,) = recommender.encode_items([launch])
vectors = recommender.bundle.vectors
taste = slice(0, config.model.dim)
cosine = (
    vectors[:, taste]
    @ vector[taste]
    / np.linalg.norm(vectors[:, taste], axis=1)
    / np.linalg.norm(vector[taste])
)
nearest = np.argsort(-cosine)[:5]
catalogue = recommender.bundle.items.column("item_id").to_numpy()
print(
    pd.DataFrame(
        {
            "product": names.reindex(catalogue[nearest]).to_numpy(),
            "cosine": cosine[nearest],
        }
    ).to_string(index=False)
)

# %% [markdown]
# ## The map
#
# The item vectors in their two main directions. Products of one department lie together: it is one of the features
# that the vectors are made of, beside who bought what.

# %%
centred = vectors[:, taste] - vectors[:, taste].mean(axis=0)
_, _, directions = np.linalg.svd(centred, full_matrices=False)
places = centred @ directions[:2].T
department = (
    items.set_index("item_id")["department"]
    .reindex(catalogue)
    .fillna("unknown")
    .to_numpy()
)
figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
for name in pd.Series(department).value_counts().index[:6]:
    axes.scatter(*places[department == name].T, s=8, alpha=0.7, label=name.title())
axes.set(
    xlabel="first direction", ylabel="second direction", title="Products by department"
)
axes.legend(markerscale=2, frameon=False)
figure.savefig(finished.bundle.parent / "map.svg")
plt.show()
