"""Make the bundled sample from the tables of the R package `completejourney` (Parquet files, CC0).

    python tests/benchmarks/make_sample.py --source DIR --out datamodules/sample

Writes interactions.parquet, users.parquet and items.parquet into OUT and prints what README.md says of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

CUT = pd.Timestamp("2017-12-01")
MIN_LINES = 20
ITEM_COLUMNS = {
    "product_id": "item_id",
    "department": "department",
    "product_category": "category",
    "product_type": "type",
    "brand": "brand",
    "package_size": "size",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        help="folder with the package's tables as Parquet",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    args = parser.parse_args()
    lines = read_lines(args.source)
    item_ids = select_items(lines)
    interactions = lines[lines["item_id"].isin(item_ids)]
    users = join_users(args.source, lines)
    items = describe_items(args.source, item_ids)
    args.out.mkdir(parents=True, exist_ok=True)
    write_interactions(interactions, args.out / "interactions.parquet")
    write_table(pa.Table.from_pandas(users, preserve_index=False), args.out / "users.parquet")
    write_table(pa.Table.from_pandas(items, preserve_index=False), args.out / "items.parquet")
    print(f"{len(interactions):,} lines, {len(users):,} users, {len(items):,} items")
    print(
        f"{share_outside(lines, item_ids):.1%} of December's distinct pairs lie outside the items kept"
    )


def read_lines(source: Path) -> pd.DataFrame:
    """Read the purchase lines under our names.

    Price and discounts of a line stay out: they are known only after the choice.
    """
    raw = pd.read_parquet(source / "transactions.parquet")
    return pd.DataFrame(
        {
            "user_id": raw["household_id"],
            "item_id": raw["product_id"],
            "datetime": raw["transaction_timestamp"],
            "store": raw["store_id"],
            "weight": raw["quantity"],
        }
    )


def select_items(lines: pd.DataFrame) -> np.ndarray:
    """Return the products with at least `MIN_LINES` lines before `CUT`, in ascending order."""
    counts = lines.loc[lines["datetime"] < CUT, "item_id"].value_counts()
    return np.sort(counts.index[counts >= MIN_LINES].to_numpy())


def join_users(source: Path, lines: pd.DataFrame) -> pd.DataFrame:
    """Return every household that bought something, its demographics null where they are not known."""
    demographics = pd.read_parquet(source / "demographics.parquet").rename(
        columns={"household_id": "user_id"}
    )
    buyers = pd.DataFrame({"user_id": np.unique(lines["user_id"])})
    return buyers.merge(demographics, on="user_id", how="left").astype({"user_id": "int32"})


def describe_items(source: Path, item_ids: np.ndarray) -> pd.DataFrame:
    products = pd.read_parquet(source / "products.parquet", columns=list(ITEM_COLUMNS)).rename(
        columns=ITEM_COLUMNS
    )
    kept = products[products["item_id"].isin(item_ids)].sort_values("item_id", ignore_index=True)
    return kept.astype({"item_id": "int32"})


def share_outside(lines: pd.DataFrame, item_ids: np.ndarray) -> float:
    """Return the share of the distinct (user, item) pairs from `CUT` on whose item is not kept."""
    pairs = lines.loc[lines["datetime"] >= CUT, ["user_id", "item_id"]].drop_duplicates()
    return float(1 - pairs["item_id"].isin(item_ids).mean())


def write_interactions(interactions: pd.DataFrame, path: Path) -> None:
    """Write the lines sorted, so that equal and ascending values lie together and compress."""
    rows = interactions.sort_values(["user_id", "datetime", "item_id", "weight"], kind="stable")
    table = pa.table(
        {
            "user_id": pa.array(rows["user_id"].to_numpy("int32")),
            "item_id": pa.array(rows["item_id"].to_numpy("int32")),
            "datetime": pa.array(rows["datetime"].to_numpy("datetime64[s]")).cast(
                pa.timestamp("ms", tz="UTC")
            ),
            "store": pa.array(rows["store"].to_numpy("int32")),
            "weight": pa.array(rows["weight"].to_numpy("int32")),
        }
    )
    write_table(table, path)


def write_table(table: pa.Table, path: Path) -> None:
    """Write one row group, so that each dictionary is stored once."""
    pq.write_table(
        table.replace_schema_metadata(None),
        path,
        compression="zstd",
        compression_level=22,
        row_group_size=len(table),
        dictionary_pagesize_limit=1 << 24,
        data_page_size=1 << 24,
    )


if __name__ == "__main__":
    main()
