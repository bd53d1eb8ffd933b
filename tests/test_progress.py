import io

import pytest

from serve import progress
from serve.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose entry is what the clock shows."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_bar_is_redrawn_a_few_times_a_second(clock):
    stream = Terminal()
    bar = Progress(3000, stream)
    bar.skip(1000)
    clock[0] += 0.1
    bar.advance(300)
    clock[0] += 1.9
    bar.advance(700)
    bar.close()
    lines = [line.split() for line in stream.getvalue().split("\r")[1:]]
    assert [line[1:] for line in lines] == [
        ["33%", "1,000", "rows,", "0", "a", "second"],
        ["67%", "2,000", "rows,", "500", "a", "second"],
        ["67%", "2,000", "rows,", "500", "a", "second"],
    ]
    assert lines[-1][0] == f"[{'#' * 20}{'.' * 10}]"
    assert stream.getvalue().endswith("\n")


def test_more_rows_than_expected_are_all_rows(clock):
    stream = Terminal()
    Progress(0, stream).advance(7)
    assert "100%  7 rows" in stream.getvalue()


def test_nothing_is_written_where_nobody_looks():
    stream = io.StringIO()
    bar = Progress(10, stream)
    bar.advance(10)
    bar.close()
    assert stream.getvalue() == ""
