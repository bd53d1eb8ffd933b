"""A shop as a spreadsheet and an old till leave it: what a person has on the first day, with nothing mended."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import yaml

N_USERS, N_ITEMS, N_TASTES, MONTHS = 80, 40, 4, 6
SHELVES = (
    "Lebensmittel > Milch > Käse",
    "Lebensmittel > Milch",
    "Lebensmittel>Brot",
    "Haushalt > Seife",
)
OUTLIERS = ("01.01.1970 00:00", "01.01.1970 01:00", "31.12.2199 23:59")


def write_messy_shop(folder: Path, seed: int = 0) -> None:
    """Write six monthly `sales-*.csv.gz`, `items.csv` and `users.csv`, all with semicolons and decimal commas.

    Days stand before months, half of the files begin with a BOM, some write times with an offset, one in a thousand
    sales is of 1970 or 2199, some prices are words.
    """
    rng = np.random.default_rng(seed)
    places = {month: [] for month in range(MONTHS)}
    for user in range(N_USERS):
        own = np.flatnonzero(np.arange(N_ITEMS) % N_TASTES == user % N_TASTES)
        for item in rng.permutation(own):
            month = int(rng.integers(MONTHS))
            places[month].append(
                (
                    user,
                    int(item),
                    int(rng.integers(28 * 86_400)),
                    rng.integers(1, 9) / 2,
                )
            )
    outliers = iter(OUTLIERS)
    for month, sales in places.items():
        lines = ["Kunde;Artikel;Zeit;Menge"]
        for user, item, second, amount in sales:
            time = datetime(2024, month + 1, 1, tzinfo=UTC) + timedelta(seconds=second)
            written = time.strftime("%d.%m.%Y %H:%M+02:00" if month == 4 else "%d.%m.%Y %H:%M")
            lines.append(f"K{user};{item};{written};{str(amount).replace('.', ',')}")
        if month % 2 == 0:
            lines.insert(len(lines) // 2, f"K{month};{month};{next(outliers)};1,0")
        text = ("\ufeff" if month % 2 else "") + "\r\n".join(lines) + "\r\n"
        (folder / f"sales-2024-{month + 1:02d}.csv.gz").write_bytes(
            gzip.compress(text.encode(), mtime=0)
        )
    rows = ["Artikel;Regal;Preis;Schlagworte;Bild;Seit"]
    for item in range(N_ITEMS):
        price = "free" if item % 20 == 7 else f"{1.5 + item:.2f}".replace(".", ",")
        image = np.array2string(rng.normal(size=3) + item % N_TASTES, separator=", ", precision=3)
        rows.append(
            f"{item};{SHELVES[item % N_TASTES]};{price};neu|t{item % 3};{image};{1 + item % 28}.3.2023"
        )
    (folder / "items.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    users = [f"K{user};{1 + user % 28:02d}.{1 + user % 12:02d}.2019" for user in range(N_USERS)]
    (folder / "users.csv").write_text("\n".join(["Kunde;Seit", *users]), encoding="utf-8")


def declare_messy_shop(folder: Path, **layout) -> str:
    """Write a configuration that names files, columns and kinds, and in each table the given keys of its layout."""
    item = {
        "shelf": {"kind": "hierarchical", "column": "Regal"},
        "price": {"kind": "numeric", "column": "Preis"},
    }
    item |= {"tags": {"kind": "multi_categorical", "column": "Schlagworte"}}
    item |= {
        "image": {"kind": "vector", "column": "Bild"},
        "released": {"kind": "date", "column": "Seit"},
    }
    columns = {
        "user_id": "Kunde",
        "item_id": "Artikel",
        "datetime": "Zeit",
        "weight": "Menge",
    }
    tables = {
        "interactions": {"path": str(folder / "sales-*.csv.gz"), "columns": columns},
        "items": {"path": str(folder / "items.csv"), "columns": {"item_id": "Artikel"}},
        "users": {"path": str(folder / "users.csv"), "columns": {"user_id": "Kunde"}},
    }
    for name, table in tables.items():
        table.update(layout.get(name, {}))
    features = {
        "user": {"joined": {"kind": "date", "column": "Seit"}},
        "item": item,
        "context": {"hour": "hour_of_day"},
    }
    data = {
        **tables,
        "features": features,
        "timezone": "Europe/Berlin",
        "split": {"kind": "time", "at": "2024-05-20"},
    }
    model = {"dim": 8, "max_epochs": 2, "batch_size": 16, "neighbours": 5}
    content = {
        "data": data,
        "model": model,
        "evaluation": {"baselines": ["popularity"]},
    }
    path = folder / "shop.yaml"
    path.write_text(
        yaml.safe_dump({**content, "trainer": {"enable_progress_bar": False}}, sort_keys=False)
    )
    return str(path)
