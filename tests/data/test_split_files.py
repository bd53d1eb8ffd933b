from __future__ import annotations

import pytest
from datamodules.config import DataConfig, FeaturesConfig, SplitConfig, TableConfig
from datamodules.rejects import check_reject_rates
from datamodules.tables import PART, read_tables
from serve.errors import SchemaError

COLUMNS = {"user_id": "u", "item_id": "i"}
TRAIN = "u;i;weight\n1;2;1\n1;3;1\n2;3;2\n"
TEST = "u;i;weight\n1;9;1\n;4;1\n1;2;1\n3;3;1\n"


def configure(folder, train=TRAIN, test=TEST, validation=None, **options):
    for name, text in (("train", train), ("test", test), ("validation", validation)):
        if text is not None:
            (folder / f"{name}.csv").write_text(text)
    split = SplitConfig(
        "files",
        test=str(folder / "test.csv"),
        validation=None if validation is None else str(folder / "validation.csv"),
    )
    return DataConfig(
        TableConfig(str(folder / "train.csv"), COLUMNS, delimiter=";"),
        split=split,
        **options,
    )


def test_the_files_of_a_split_are_rows_with_their_part(tmp_path):
    tables, rejects = read_tables(configure(tmp_path, validation="weight;i;u\n3;5;1\n"))
    events = tables.interactions
    assert list(events) == ["user_id", "item_id", "weight", PART]
    assert events[PART].tolist() == ["train"] * 3 + ["validation"] + ["test"] * 3
    assert events.drop(columns=PART).to_numpy().tolist() == [
        [1, 2, 1],
        [1, 3, 1],
        [2, 3, 2],
        [1, 5, 3],
        [1, 9, 1],
        [1, 2, 1],
        [3, 3, 1],
    ]
    assert tables.users["user_id"].tolist() == [1, 2, 3]
    assert rejects.records == {"interactions": 3, "validation": 1, "test": 4}
    assert rejects.frame[["file", "line"]].to_numpy().tolist() == [[str(tmp_path / "test.csv"), 3]]
    assert {name: len(frame) for name, frame in rejects.tables.items()} == {
        "interactions": 0,
        "validation": 0,
        "test": 1,
    }
    with pytest.raises(
        SchemaError,
        match=r"test: 1 of 4 records are bad, more than data.max_reject_rate = 0.2",
    ):
        check_reject_rates(rejects, 0.2)


def test_ids_are_of_one_type_over_all_parts(tmp_path):
    tables, _ = read_tables(configure(tmp_path, test="u;i;weight\n1;007;1\n"))
    assert tables.interactions["item_id"].tolist() == ["2", "3", "3", "007"]
    assert tables.interactions["user_id"].tolist() == [1, 1, 2, 1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"test": "u;item;weight\n1;2;3\n"},
            "test.csv: column 'i' is absent, which .*train.csv has",
        ),
        (
            {"test": "u;i\n1;2\n"},
            "test.csv: column 'weight' is absent, which .*train.csv has",
        ),
        (
            {"validation": "u;i;weight;event\n1;2;3;x\n"},
            "train.csv: column 'event' is absent, which .*validation.csv",
        ),
        ({"test": "u;i;weight\n"}, "test.csv is empty"),
        (
            {"test": "u;i;weight\n1;2;x\n"},
            "column 'weight' does not hold numbers.*test.csv",
        ),
    ],
)
def test_a_file_that_is_not_laid_out_as_the_interactions_is_refused(tmp_path, files, message):
    with pytest.raises(SchemaError, match=message):
        read_tables(configure(tmp_path, **files))


def test_a_file_of_two_parts_is_refused(tmp_path):
    config = configure(tmp_path)
    pattern = DataConfig(
        TableConfig(str(tmp_path / "*.csv"), COLUMNS, delimiter=";"), split=config.split
    )
    with pytest.raises(SchemaError, match=r"test.csv is a file of two parts"):
        read_tables(pattern)


def test_a_column_called_as_the_part_is_no_feature(tmp_path):
    with pytest.raises(SchemaError, match="'part of the split' is reserved"):
        read_tables(
            configure(
                tmp_path,
                f"u;i;{PART}\n1;2;3\n",
                features=FeaturesConfig(context={PART: "categorical"}),
            )
        )
