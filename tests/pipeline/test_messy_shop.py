"""The messy shop trains at the second try, with nothing but what the first one said."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import train
import yaml
from rich.console import Console
from serve.recommender import Recommender
from tests.data.messy_shop import (
    BOTS,
    MONTHS,
    N_DOUBLED,
    N_GIVEN_TWICE,
    N_GUESTS,
    N_ITEMS,
    N_PADDED,
    N_RETURNED,
    OUTLIERS,
    TOWNS,
    declare_messy_shop,
    write_messy_shop,
)
from tests.models.tiny_towers import one_thread
from tests.pipeline.small_runs import trace_exports

pytestmark = pytest.mark.slow
_DECLARE = re.compile(r"declare (\w+): (\S.*?) in data(?:\.(\w+))?(?=[;\s]|$)")


def follow(message: str) -> dict[str, dict]:
    """Return what a message says to declare: table, "" for `data` itself -> keys."""
    layout: dict[str, dict] = {}
    for key, value, table in _DECLARE.findall(message):
        layout.setdefault(table, {})[key] = yaml.safe_load(value)
    return layout


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Try twice: folder, exit status and message of the first try, status and output of the second."""
    folder = tmp_path_factory.mktemp("shop")
    write_messy_shop(folder)
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        trace_exports(patch)
        errors: list[str] = []
        patch.setattr("sys.stderr.write", errors.append, raising=False)
        out = ["--out", str(folder / "run")]
        first = train.main(["--config", declare_messy_shop(folder), *out])
        message = "".join(errors)
        output = io.StringIO()
        patch.setattr("pipeline.run.console", Console(file=output, width=200))
        again = train.main(["--config", declare_messy_shop(folder, follow(message)), *out])
    return folder, first, message, again, output.getvalue()


def test_the_first_try_names_every_fault_and_its_remedy_and_the_second_trains(told):
    _, first, message, again, _ = told
    assert (first, again) == (2, 0)
    head, *faults = message.strip().splitlines()
    assert f"{len(faults)} faults" in head
    assert all(len(_DECLARE.findall(fault)) == 1 for fault in faults)
    assert follow(message) == {
        "": {"max_reject_rate": 0.05},
        "interactions": {
            "time_formats": ["%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M%z"],
            "decimal": ",",
        },
        "users": {"time_formats": ["%d.%m.%Y"], "encoding": "cp1252"},
        "items": {
            "time_formats": ["%d.%m.%Y"],
            "decimal": ",",
            "keep": "last",
            "names": [
                "Artikel",
                "Regal",
                "Preis",
                "Schlagworte",
                "Bild",
                "Seit",
                "Artikel 7",
            ],
        },
    }


def test_outliers_guests_and_sums_are_rejected_and_bad_prices_cost_the_cell(told):
    folder = told[0]
    rejects = pq.read_table(folder / "run" / "rejects.parquet").to_pylist()
    records = [one for one in rejects if one["costs"] == "record"]
    assert len(records) == len(OUTLIERS) + N_GUESTS + MONTHS
    assert all("sales-2024" in one["file"] and one["line"] > 1 for one in records)
    assert [(one["column"], one["value"]) for one in rejects if one["costs"] == "cell"] == [
        ("Preis", "free")
    ] * 2
    report = json.loads((folder / "run" / "metrics.json").read_text())["data"]
    assert report["time"]["first"].startswith("2024-0")
    assert any("01.01.1970" in hint and "31.12.2199" in hint for hint in report["hints"])


def test_what_was_mended_is_counted_and_every_record_is_accounted_for(told):
    report = json.loads((told[0] / "run" / "metrics.json").read_text())["data"]
    cleaning = report["cleaning"]
    assert cleaning["duplicate_events"] == N_DOUBLED
    assert cleaning["duplicate_items"] == N_GIVEN_TWICE
    assert cleaning["taken_back"] == cleaning["negative_weights"] == N_RETURNED
    n_gone = N_DOUBLED + 2 * N_RETURNED + sum(report["rejected"].values())
    assert report["records"]["interactions"] == report["counts"]["interactions"] + n_gone
    assert report["counts"]["items"] == report["counts"]["items_table"] == N_ITEMS
    assert sum(hint.startswith(f"{N_PADDED} ids of interactions") for hint in report["hints"]) == 1


def test_bots_are_named_where_the_run_prints_and_in_no_file(told):
    assert follow(told[4])[""] == {"exclude_users": list(BOTS)}
    written = (told[0] / "run" / "metrics.json").read_text()
    assert not any(bot in written for bot in BOTS)


def test_texts_of_another_encoding_and_the_last_rows_of_items_arrive(told):
    bundle = told[0] / "run" / "bundle"
    facts = json.loads((bundle / "schema.json").read_text())["user_features"]
    town = next(feature for feature in facts if feature["name"] == "town")
    assert set(TOWNS) <= set(town["vocabulary"])
    prices = pq.read_table(bundle / "items.parquet")["Preis"].to_pylist()
    assert len(prices) == N_ITEMS
    assert 999.9 not in prices


def test_what_was_trained_answers_with_all_kinds_and_dates_move_with_the_request(told):
    recommender = Recommender.load(told[0] / "run" / "bundle")
    asked = [{"user_id": "K3", "datetime": f"{year}-07-01T12:00:00Z"} for year in (2024, 2031)]
    near, far = recommender.encode_users(asked)
    assert np.abs(near - far).max() > 1e-4
    assert len(recommender.recommend(asked, k=5)) == 2
    shelf = {"where": "shelf = 'Lebensmittel > Milch' "}
    answer = recommender.recommend(
        [
            {
                "user_id": "K3",
                "filters": {"where": shelf["where"].replace("shelf", "Regal")},
            }
        ]
    )
    assert set(answer.to_table()["item_id"].to_pylist()) <= {
        item for item in range(40) if item % 4 < 2
    }
