from __future__ import annotations

import pandas as pd
import pytest

from datamodules.config import DataConfig, FeaturesConfig
from datamodules.tables import tables_from_frames, write_rejects

TORN = "a\ud800"


@pytest.mark.parametrize(
    ("column", "is_listed"),
    [
        *((name, False) for name in ("user_id", "item_id", "event", "device", "tags", "note")),
        *((name, True) for name in ("tags", "note")),
    ],
)
def test_half_of_a_surrogate_pair_is_rejected_and_the_list_of_rejects_can_be_written(tmp_path, column, is_listed):
    values = ["a", TORN, "c"]
    columns = {name: ["a", "b", "c"] for name in ("user_id", "item_id", "event", "device", "tags", "note")}
    odd = {column: pd.Series([[one] for one in values] if is_listed else values, dtype=object)}
    features = FeaturesConfig(context={"device": "categorical", "tags": "multi_categorical", "note": "text"})
    config = DataConfig(features=features, max_reject_rate=1.0)
    tables, rejects = tables_from_frames(config, pd.DataFrame(columns | odd))
    assert len(tables.interactions) == 2
    assert rejects.frame[["line", "column", "reason"]].to_numpy().tolist() == [[2, column, "half of a surrogate pair"]]
    write_rejects(rejects, tmp_path / "rejects.parquet")
    (value,) = pd.read_parquet(tmp_path / "rejects.parquet")["value"]
    assert value == ("['a\\ud800']" if is_listed else "a?")
