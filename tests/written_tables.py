"""Tables written to files for tests of reading."""

from hypothesis import strategies as st

from datamodules.config import DataConfig, TableConfig
from datamodules.tables import read_tables

EVENTS = "user_id,item_id,datetime,weight\n"


FAULTS = {
    "good": ("1,2,2017-12-01,3\n", []),
    "no id": (",2,2017-12-01,3\n", [(3, "user_id", "missing")]),
    "blank id": ('1,"  ",2017-12-01,3\n', [(3, "item_id", "missing")]),
    "no time": ("1,2,,3\n", [(3, "datetime", "missing")]),
    "bad time": ("1,2,2017-13-01,3\n", [(3, "datetime", "not a time")]),
    "no weight": ("1,2,2017-12-01,\n", [(3, "weight", "missing")]),
    "bad weight": ("1,2,2017-12-01,many\n", [(3, "weight", "not a number")]),
    "endless weight": ("1,2,2017-12-01,inf\n", [(3, "weight", "not finite")]),
    "weight nan": ("1,2,2017-12-01,nan\n", [(3, "weight", "missing")]),
    "two faults are one record": (",,x,y\n", [(3, "user_id", "missing")]),
    "short": ("1,2,2017-12-01\n", [(3, "weight", "too few columns")]),
    "long": ("1,2,2017-12-01,3,4,5\n", [(3, None, "too many columns")]),
    "one empty cell more": ("1,2,2017-12-01,3,\n", [(3, None, "too many columns")]),
    "empty cells more": ("1,2,2017-12-01,3,,,\n", [(3, None, "too many columns")]),
    "delimiters alone": (",,,,,\n", [(3, None, "too many columns")]),
    "a byte and an empty cell more": (b"\xff,2,2017-12-01,3,\n", [(3, "user_id", "not UTF-8")]),
    "bytes": (b"1,\xff,2017-12-01,3\n", [(3, "item_id", "not UTF-8")]),
    "a byte and too long": (b"\xff,\xff,2017-12-01,3,9\n", [(3, "user_id", "not UTF-8")]),
    "quote": ('1,"2"2,2017-12-01,3\n', [(3, "item_id", "a quote is not closed properly")]),
}


def encode(record):
    return record if isinstance(record, bytes) else record.encode()


HOSTILE = st.lists(st.sampled_from(["1", "a", '"', '""', ",", "\n", " ", "\\", "#", "\0", "ü", "\udcff"]), max_size=30)


def configure(folder, text, **options):
    path = folder / "events.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return DataConfig(interactions=TableConfig(str(path)), **{"max_reject_rate": 1.0, **options})


def read(folder, text, **options):
    return read_tables(configure(folder, text, **options))


def list_rejects(rejects):
    frame = rejects.frame.astype(object).where(rejects.frame.notna(), None)
    return list(zip(frame["line"], frame["column"], frame["reason"], strict=True))
