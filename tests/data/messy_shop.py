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
TOWNS = ("Zürich", "Köln", "Wien")
OUTLIERS = ("01.01.1970 00:00", "01.01.1970 01:00", "31.12.2199 23:59")
BOTS = {"K900": 600, "K901": 300}
N_GUESTS, N_PADDED, N_DOUBLED, N_RETURNED, N_GIVEN_TWICE = 60, 24, 30, 12, 7


def write_messy_shop(folder: Path, seed: int = 0) -> None:
    """Write six monthly `sales-*.csv.gz`, `items.csv` and `users.csv`, all with semicolons and decimal commas.

    Days stand before months, half of the files begin with a BOM, some write times with an offset, all end in a sum,
    some sales are of 1970 or 2199, of guests, of bots, returned, there twice, or have ids with blanks around them.
    A column is noise. The catalogue has a column twice and old rows of some items; customers are written in cp1252.
    """
    rng = np.random.default_rng(seed)
    for month, sales in enumerate(_draw_sales(rng)):
        lines = [";".join(sale) for sale in sales]
        if month % 2 == 0:
            lines.insert(len(lines) // 2, f"K{month};{month};{OUTLIERS[month // 2]};1,0;0,5")
        lines = ["Kunde;Artikel;Zeit;Menge;Rauschen", *lines, f"Summe;;;{len(lines)},0;"]
        text = ("\ufeff" if month % 2 else "") + "\r\n".join(lines) + "\r\n"
        (folder / f"sales-2024-{month + 1:02d}.csv.gz").write_bytes(
            gzip.compress(text.encode(), mtime=0)
        )
    _write_items(folder, rng)
    rows = [
        f"K{user};{1 + user % 28:02d}.{1 + user % 12:02d}.2019;{TOWNS[user % 3]}"
        for user in range(N_USERS)
    ]
    text = "\n".join(["Kunde;Seit;Stadt", *rows])
    (folder / "users.csv").write_bytes(text.encode("cp1252"))


def _draw_sales(rng: np.random.Generator) -> list[list[list[str]]]:
    """Draw the cells of the sales of each month: each user buys each item of their taste once."""
    months: list[list[list[str]]] = [[] for _ in range(MONTHS)]

    def sell(user: str, item: int, month: int, second: int, amount: float) -> list[str]:
        time = datetime(2024, month + 1, 1, tzinfo=UTC) + timedelta(seconds=second)
        written = time.strftime("%d.%m.%Y %H:%M+02:00" if month == 4 else "%d.%m.%Y %H:%M")
        numbers = [f"{number:.3f}".replace(".", ",") for number in (amount, rng.random())]
        months[month].append([user, str(item), written, *numbers])
        return months[month][-1]

    sales = []
    for user in range(N_USERS):
        for item in range(user % N_TASTES, N_ITEMS, N_TASTES):
            month, second = int(rng.integers(MONTHS)), int(rng.integers(27 * 86_400))
            sale = (f"K{user}", item, month, second, rng.integers(1, 9) / 2)
            sales.append((sell(*sale), sale))
    order = rng.permutation(len(sales)).tolist()
    early = [place for place in order if sales[place][1][2] < 3][:N_RETURNED]
    for place in early:
        user, item, month, second, amount = sales[place][1]
        sell(user, item, month, second + 3_600, -amount)
    plain = [place for place in order if place not in early]
    for place in plain[:N_PADDED]:
        sales[place][0][place % 2] += " " if place % 3 else "\xa0"
    for place in plain[N_PADDED : N_PADDED + N_DOUBLED]:
        months[sales[place][1][2]].append(sales[place][0])
    visitors = {"": N_GUESTS, **BOTS}
    for visitor, n_events in visitors.items():
        for item in rng.integers(N_ITEMS, size=n_events).tolist():
            sell(visitor, item, int(rng.integers(MONTHS)), int(rng.integers(27 * 86_400)), 1.0)
    return months


def _write_items(folder: Path, rng: np.random.Generator) -> None:
    """Write the catalogue; its column `Artikel` is there twice, and so are some items, at another price."""
    rows = []
    for item in range(N_ITEMS):
        price = "free" if item % 20 == 7 else f"{1.5 + item:.2f}".replace(".", ",")
        image = np.array2string(rng.normal(size=3) + item % N_TASTES, separator=", ", precision=3)
        facts = f"neu|t{item % 3};{image};{1 + item % 28}.3.2023;{item}"
        if item < N_GIVEN_TWICE:
            rows.append(f"{item};{SHELVES[item % N_TASTES]};999,90;{facts}")
        rows.append(f"{item};{SHELVES[item % N_TASTES]};{price};{facts}")
    text = "\n".join(["Artikel;Regal;Preis;Schlagworte;Bild;Seit;Artikel", *rows])
    (folder / "items.csv").write_text(text, encoding="utf-8-sig")


def declare_messy_shop(folder: Path, layout: dict[str, dict] | None = None) -> str:
    """Write a configuration that names files, columns and kinds, and the given keys of tables and of `data` ("")."""
    layout = layout or {}
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
        "user": {
            "joined": {"kind": "date", "column": "Seit"},
            "town": {"kind": "categorical", "column": "Stadt"},
        },
        "item": item,
        "context": {
            "hour": "hour_of_day",
            "noise": {"kind": "numeric", "column": "Rauschen"},
        },
    }
    data = {
        **tables,
        "features": features,
        "timezone": "Europe/Berlin",
        "split": {"kind": "time", "at": "2024-05-20"},
        **layout.get("", {}),
    }
    model = {"dim": 8, "max_epochs": 1, "batch_size": 16, "neighbours": 5}
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
