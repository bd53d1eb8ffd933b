"""The configurations for other people's tables read what the benchmark harness and the raw files look like."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datamodules.clean import clean, order_tables
from datamodules.schema_fitting import fit_schema
from datamodules.splits import split_interactions
from datamodules.tables import read_tables
from tests.data.test_config import CONFIGS, load

N_USERS, N_ITEMS, N_EVENTS = 7, 11, 61
LAYOUTS = {
    "bench/movielens-100k": {
        "interactions": "user_id,item_id,timestamp,position,rating",
        "users": "user_id,age,gender,occupation,zip",
        "items": "item_id,title,year,genres",
    },
    "bench/amazon-beauty": {
        "interactions": "user_id,item_id,timestamp,position",
        "users": "user_id",
        "items": "item_id,attributes",
    },
    "bench/complete-journey": {
        "interactions": "user_id,item_id,timestamp,position,quantity,basket_id,store_id",
        "users": "user_id,age,income,home_ownership,marital_status,household_size,household_comp,kids_count",
        "items": "item_id,manufacturer_id,department,brand,product_category,product_type,package_size",
    },
    "bench/frappe": {
        "interactions": "user_id,item_id,cnt,daytime,weekday,isweekend,homework,weather,country,city",
        "users": "user_id",
        "items": "item_id,cost,package,category,downloads,developer,language,name,price,rating,description",
    },
    "amazon-beauty": {
        "interactions": "user_id,item_id,timestamp,position",
        "items": "item_id,attributes",
    },
    "frappe": {
        "interactions": "user\titem\tcnt\tdaytime\tweekday\tisweekend\thomework\tcost\tweather\tcountry\tcity",
        "items": "item\tpackage\tcategory\tdownloads\tdeveloper\tlanguage\tname\tprice\trating\tshort desc",
    },
}
NUMBERS = {
    "age",
    "year",
    "rating",
    "quantity",
    "cnt",
    "city",
    "basket_id",
    "store_id",
    "manufacturer_id",
}
JOINED = {"genres", "attributes"}


def make_column(name: str, n: int, rng: np.random.Generator) -> np.ndarray:
    if name in NUMBERS:
        return rng.integers(1, 6, n)
    words = rng.choice(["red", "green, or blue", 'it\'s "new"'], n)
    return np.array([f"{word}|{word}s" for word in words]) if name in JOINED else words


def make_table(table: str, header: str, rng: np.random.Generator) -> pd.DataFrame:
    names = header.replace("\t", ",").split(",")
    n = {"users": N_USERS, "items": N_ITEMS, "interactions": N_EVENTS}[table]
    frame = pd.DataFrame({name: make_column(name, n, rng) for name in names})
    if table != "interactions":
        return frame.assign(**{names[0]: np.arange(n)})
    pairs = rng.permutation(N_USERS * N_ITEMS)[:n]
    ordered = {
        "timestamp": 1_400_000_000 + np.arange(n) * 7000,
        "position": np.arange(n),
    }
    return frame.assign(
        **{names[0]: pairs % N_USERS, names[1]: pairs // N_USERS},
        **{name: values for name, values in ordered.items() if name in names},
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_reads_and_fits_tables_of_its_layout(name, tmp_path):
    config, rng = load(name), np.random.default_rng(0)
    for table, header in LAYOUTS[name].items():
        delimiter = "\t" if "\t" in header else ","
        path = tmp_path / Path(getattr(config, table).path).name
        make_table(table, header, rng).to_csv(path, sep=delimiter, index=False)
        config = replace(config, **{table: replace(getattr(config, table), path=str(path))})
    tables, rejects = read_tables(config)
    assert rejects.frame.empty
    assert (len(tables.interactions), len(tables.items)) == (N_EVENTS, N_ITEMS)
    tables = order_tables(clean(tables)[0], config.ties)
    split = split_interactions(tables.interactions, config, 0)
    assert len(split.test) == 0 if name.startswith("bench/") else len(split.test) >= N_USERS - 1
    schema = fit_schema(tables, split.train, config)
    for side in ("user", "item", "context"):
        assert {feature.name for feature in schema.features(side)} == set(config.features.of(side))
    assert schema.is_set == ("timestamp" not in LAYOUTS[name]["interactions"])


def test_every_configuration_that_reads_files_from_elsewhere_is_tried():
    elsewhere = {str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml")}
    assert elsewhere - {"grocery", "library", "movielens-100k", "template"} == set(LAYOUTS)
