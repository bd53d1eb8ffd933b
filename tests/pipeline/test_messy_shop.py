"""The messy shop trains at the second try, with nothing but what the first one said."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import train
import yaml
from serve.recommender import Recommender
from tests.data.messy_shop import OUTLIERS, declare_messy_shop, write_messy_shop
from tests.models.tiny_towers import one_thread

pytestmark = pytest.mark.slow
_DECLARE = re.compile(r"declare (\w+): (\S.*?) in data\.(\w+)")


def follow(message: str) -> dict[str, dict]:
    """Return what a message says to declare: table -> keys of its layout."""
    layout: dict[str, dict] = {}
    for key, value, table in _DECLARE.findall(message):
        layout.setdefault(table, {})[key] = yaml.safe_load(value)
    return layout


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Try twice: folder, exit status and message of the first try, status of the second."""
    folder = tmp_path_factory.mktemp("shop")
    write_messy_shop(folder)
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        errors: list[str] = []
        patch.setattr("sys.stderr.write", errors.append, raising=False)
        first = train.main(["--config", declare_messy_shop(folder), "--out", str(folder / "run")])
        message = "".join(errors)
        again = train.main(
            [
                "--config",
                declare_messy_shop(folder, **follow(message)),
                "--out",
                str(folder / "run"),
            ]
        )
    return folder, first, message, again


def test_the_first_try_says_all_that_is_missing_in_one_line_and_the_second_trains(told):
    _, first, message, again = told
    assert (first, message.strip().count("\n"), again) == (2, 0, 0)
    assert follow(message) == {
        "interactions": {
            "time_formats": ["%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M%z"],
            "decimal": ",",
        },
        "users": {"time_formats": ["%d.%m.%Y"]},
        "items": {"time_formats": ["%d.%m.%Y"], "decimal": ","},
    }


def test_outliers_are_named_and_rejected_and_bad_prices_cost_the_cell(told):
    folder = told[0]
    rejects = pq.read_table(folder / "run" / "rejects.parquet").to_pylist()
    records = [one for one in rejects if one["costs"] == "record"]
    assert len(records) == len(OUTLIERS)
    assert all("sales-2024" in one["file"] and one["line"] > 1 for one in records)
    assert [(one["column"], one["value"]) for one in rejects if one["costs"] == "cell"] == [
        ("Preis", "free")
    ] * 2
    report = json.loads((folder / "run" / "metrics.json").read_text())["data"]
    assert report["time"]["first"].startswith("2024-0")
    assert report["records"]["interactions"] == report["counts"]["interactions"] + len(records)
    assert any("01.01.1970" in hint and "31.12.2199" in hint for hint in report["hints"])


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
