import pyarrow.parquet as pq
import pytest

from datamodules.clean import clean
from datamodules.config import TableConfig
from datamodules.tables import Rejects, check_reject_rates, write_rejects
from serve.errors import SchemaError
from tests.written_tables import EVENTS, list_rejects, read


def test_rejects_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    _, rejects = read(tmp_path, EVENTS + "1,2,x,3\n1,2,2017-12-01\n,2,2017-12-01,4\n5,5,2017-12-01,5\n")
    target = tmp_path / "rejects.parquet"
    write_rejects(rejects, target)
    written = pq.read_table(target)
    assert written.column_names == ["file", "line", "column", "value", "reason"]
    assert written["line"].to_pylist() == [2, 3, 4]
    assert written["value"].to_pylist() == ["x", "1,2,2017-12-01", None]
    before = target.read_bytes()

    def fail(table, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="No space"):
        write_rejects(rejects, target)
    assert target.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"events.csv", "rejects.parquet"}


def test_too_many_bad_records_are_refused_once_they_are_known(tmp_path):
    (tmp_path / "users.csv").write_text("user_id\n1\n\n2\n")
    users = TableConfig(str(tmp_path / "users.csv"))
    text = EVENTS + "1,2,x,3\n1,2\n1,2,2017-12-01,3\n1,2,2017-12-02,3\n9,9,2017-12-02,3\n"
    _, rejects = read(tmp_path, text, users=users, max_reject_rate=0.0)
    assert (rejects.records, rejects.frame["line"].tolist()) == ({"interactions": 5, "users": 3}, [2, 3, 3])
    check_reject_rates(rejects, 0.4)
    with pytest.raises(SchemaError) as error:
        check_reject_rates(rejects, 0.39)
    assert str(error.value) == (
        "interactions: 2 of 5 records are bad, more than data.max_reject_rate = 0.39; the first: "
        f"{tmp_path / 'events.csv'}, line 2, column 'datetime', value 'x': not a time; mend the files or raise the rate"
    )
    fewer = Rejects({"users": rejects.tables["users"]}, {"users": 3}, {"users": ()})
    with pytest.raises(SchemaError, match=r"users: 1 of 3 records.*line 3, column 'user_id', no value: missing"):
        check_reject_rates(fewer, 0.01)


def test_a_table_of_bad_records_alone_can_be_read_and_written(tmp_path):
    tables, rejects = read(tmp_path, EVENTS + "1,2\n,3,2017-12-01,4\n")
    assert len(clean(tables)[0].interactions) == 0
    assert list_rejects(rejects) == [(2, "datetime", "too few columns"), (3, "user_id", "missing")]
    with pytest.raises(SchemaError, match="2 of 2 records are bad"):
        check_reject_rates(rejects, 0.5)
