"""From the CSV files of a shop, with its own column names and a semicolon: one configuration."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import bascule

CONFIG = """
data:
  interactions:
    path: "orders-*.csv"
    delimiter: ";"
    columns: {user_id: customer, item_id: sku, datetime: ordered_at}
  users: {path: customers.csv, delimiter: ";", columns: {user_id: customer}, missing: ["-"]}
  items: {path: products.csv, delimiter: ";", columns: {item_id: sku}}
  features:
    user: {town: categorical}
    item: {department: categorical, price: numeric}
  repeats: allow                  # people buy the same again
  ties: simultaneous              # an order has many lines
model: {max_epochs: 3}            # leave this out for tables of your own
evaluation: {baselines: [popularity]}
"""


def write(name: str, header: list[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a file as the shop exports it."""
    with Path(name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";").writerows([header, *rows])


def write_shop() -> None:
    """Draw two months of orders: a customer keeps to one department of two."""
    rng = random.Random(0)
    products = [
        [f"P{i:02d}", ("garden", "kitchen")[i % 2], round(rng.uniform(1, 9), 2)]
        for i in range(24)
    ]
    write("products.csv", ["sku", "department", "price"], products)
    write(
        "customers.csv",
        ["customer", "town"],
        [[i, rng.choice(["Bonn", "Ulm", "-"])] for i in range(60)],
    )
    for month in (1, 2):
        days = [
            (customer, day)
            for customer in range(60)
            for day in rng.sample(range(1, 28), 3)
        ]
        lines = [
            (customer, day, sku)
            for customer, day in days
            for sku in rng.sample(range(12), 2)
        ]
        orders = [
            [c, f"P{2 * sku + c % 2:02d}", f"2025-{month:02d}-{day:02d} 12:00:00"]
            for c, day, sku in lines
        ]
        write(f"orders-2025-{month:02d}.csv", ["customer", "sku", "ordered_at"], orders)


def main() -> None:
    """Write the files, train as on the command line, and ask."""
    write_shop()
    Path("shop.yaml").write_text(CONFIG, encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "bascule", "train", "--config", "shop.yaml"], check=True
    )
    recommender = bascule.load("runs/shop")  # runs/shop/report.html says how good it is
    print(recommender.recommend([1, 2], k=4))
    print(
        recommender.recommend(
            {"history": ["P00", "P02"], "features": {"town": "Ulm"}},
            k=4,
            repeats="exclude",
        )
    )


if __name__ == "__main__":
    main()
