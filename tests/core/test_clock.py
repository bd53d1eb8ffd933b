from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.clock import read_calendar, to_seconds
from serve.errors import SchemaError

SECONDS = [1512086400, 1512122405, 1483271606]
MOMENTS = [datetime.fromtimestamp(value, UTC) for value in SECONDS]
NAIVE = [moment.replace(tzinfo=None) for moment in MOMENTS]
ENCODINGS = {
    "epoch seconds": np.array(SECONDS),
    "epoch milliseconds": np.array(SECONDS) * 10**3 + 7,
    "epoch microseconds": np.array(SECONDS) * 10**6 + 7,
    "epoch nanoseconds": np.array(SECONDS) * 10**9 + 7,
    "float seconds": np.array(SECONDS) + 0.25,
    "unsigned": np.array(SECONDS, "uint32"),
    "list of numbers": [SECONDS[0], float(SECONDS[1]), np.int64(SECONDS[2])],
    "digits": [str(value) for value in SECONDS],
    "numeric texts": [f" {value}000 " for value in SECONDS],
    "numeric texts with a point": [f"{value}.9" for value in SECONDS],
    "iso": [moment.isoformat() for moment in NAIVE],
    "iso with Z": [moment.isoformat() + "Z" for moment in NAIVE],
    "iso with a comma": [moment.isoformat() + ",75" for moment in NAIVE],
    "iso with fractions and UTC": [moment.isoformat(" ") + ".125 UTC" for moment in NAIVE],
    "iso with an offset apart": [
        moment.isoformat(" ") + offset
        for moment, offset in zip(NAIVE, (" +0000", "+00", "UTC"), strict=True)
    ],
    "iso with an offset": [
        moment.astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat()
        for moment in MOMENTS
    ],
    "iso with nanoseconds": [moment.isoformat() + ".987654321" for moment in NAIVE],
    "datetimes": NAIVE,
    "aware datetimes": [moment.astimezone(ZoneInfo("Asia/Tokyo")) for moment in MOMENTS],
    "datetime64[ns]": np.array(NAIVE, "datetime64[ns]"),
    "datetime64 scalars": list(np.array(NAIVE, "datetime64[us]")),
    "objects": np.array([NAIVE[0], MOMENTS[1], NAIVE[2].isoformat()], dtype=object),
}


@settings(max_examples=200, deadline=None)
@given(
    moments=st.lists(st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1)), min_size=1, max_size=4),
    form=st.sampled_from(["T", " ", "T.", " .", "T,"]),
    zones=st.lists(
        st.sampled_from(
            [
                "",
                "Z",
                " Z",
                "UTC",
                " UTC",
                "+00:00",
                " +00",
                "+0000",
                "+05:30",
                "-05",
                "-99:99",
            ]
        )
    ),
    place=st.integers(0, 30),
    digit=st.sampled_from("09:.+Zx٢ "),
)
def test_texts_that_are_read_at_once_are_read_as_one_by_one(moments, form, zones, place, digit):
    separator, *fraction = form
    texts = [
        f"{moment:%Y-%m-%d}".rjust(10, "0")
        + f"{separator}{moment:%H:%M:%S}{''.join(fraction)}{f'{moment:%f}'[:3] if fraction else ''}"
        + (zones[row % len(zones)] if zones else "")
        for row, moment in enumerate(moments)
    ]
    for changed in (
        texts,
        [*texts[:-1], texts[-1][:place] + digit + texts[-1][place + 1 :]],
    ):
        together, one_by_one = (
            to_seconds(changed, "Asia/Tokyo"),
            to_seconds([f" {text}" for text in changed], "Asia/Tokyo"),
        )
        assert together[0].tolist() == one_by_one[0].tolist()
        assert together[1].tolist() == one_by_one[1].tolist()


@pytest.mark.parametrize("values", ENCODINGS.values(), ids=ENCODINGS.keys())
def test_all_encodings_of_a_time_agree(values):
    seconds, is_valid = to_seconds(values, None)
    assert seconds.tolist() == SECONDS
    assert seconds.dtype == np.int64
    assert is_valid.all()


@pytest.mark.parametrize(
    "values",
    [
        ["2017-12-01", "2017-12-02"],
        [date(2017, 12, 1), date(2017, 12, 2)],
        np.array(["2017-12-01", "2017-12-02"], "datetime64[D]"),
    ],
)
def test_a_date_is_its_midnight_in_the_zone(values):
    seconds, is_valid = to_seconds(values, "America/New_York")
    assert seconds.tolist() == [1512086400 + 5 * 3600, 1512172800 + 5 * 3600]
    assert is_valid.all()


def test_an_offset_or_epoch_number_is_not_moved_by_the_zone():
    assert to_seconds(["2017-12-01T00:00:00Z"], "Asia/Tokyo")[0].tolist() == [1512086400]
    assert to_seconds([1512086400], "Asia/Tokyo")[0].tolist() == [1512086400]


UNREADABLE = [
    None,
    "",
    "  ",
    "yesterday",
    "2017-13-01",
    "2017-02-30 10:00:00",
    float("nan"),
    float("inf"),
    True,
]
UNREADABLE += [
    b"2017-12-01",
    "2017-12-01x10:00:00",
    "now",
    "2017-12-01 UTC",
    "2017-12-01 10:00:00  UTC",
    "2017-12-01 10:00:00 CET",
    "NaT",
    np.datetime64("NaT", "s"),
    np.timedelta64(3, "D"),
    "12/01/2017",
    ["2017-12-01"],
]


@pytest.mark.parametrize("cell", UNREADABLE, ids=repr)
def test_an_unreadable_cell_is_invalid_and_its_neighbours_are_not(cell):
    cells = np.empty(3, object)
    cells[:] = ["2017-12-01", cell, "2017-12-02 00:00:01"]
    seconds, is_valid = to_seconds(cells, None)
    assert is_valid.tolist() == [True, False, True]
    assert seconds.tolist() == [1512086400, 0, 1512172801]


def test_missing_numbers_and_moments_are_invalid():
    assert to_seconds(np.array([np.nan, 1.5e9, np.inf]), None)[1].tolist() == [
        False,
        True,
        False,
    ]
    assert to_seconds(np.array(["NaT", "2017-12-01"], "datetime64[ms]"), None)[1].tolist() == [
        False,
        True,
    ]
    assert to_seconds(np.array(["-0005", "20000"], "datetime64[Y]"), "Asia/Tokyo")[1].tolist() == [
        False,
        False,
    ]


def test_the_first_and_the_last_second_are_times_and_those_beside_them_none():
    first, last = (
        int(datetime(*day, tzinfo=UTC).timestamp()) for day in ((1, 1, 2), (9999, 12, 30))
    )
    for values in ([first - 1, first, last, last + 1], [first, last]):
        seconds, is_valid = to_seconds(np.array(values, "datetime64[s]"), None)
        assert is_valid.tolist() == [first <= value <= last for value in values]
        assert seconds.tolist() == [value if first <= value <= last else 0 for value in values]


@pytest.mark.parametrize("ticks", [10**0, 10**3, 10**6, 10**9])
def test_a_number_tells_its_unit_from_1973_to_2286(ticks):
    for seconds in (10**8, min(10**10 - 1, (2**63 - 1) // ticks)):
        assert to_seconds([seconds * ticks], None)[0].tolist() == [seconds]
    for number in ((10**8 - 1) * ticks, min(10**10 * ticks, 10**16)):
        with pytest.raises(SchemaError, match=f"time '{number}' is ambiguous"):
            to_seconds([number], None)


def test_the_minority_of_a_column_of_numbers_and_dates_is_invalid():
    assert to_seconds(["2017-12-01", "2017-12-02", 1512086400], None)[1].tolist() == [
        True,
        True,
        False,
    ]
    assert to_seconds(["2017-12-01", 1512086400, "1512086401"], None)[1].tolist() == [
        False,
        True,
        True,
    ]


def test_no_cells_give_no_times():
    for empty in (
        [],
        np.array([]),
        np.array([], object),
        np.array([], "datetime64[s]"),
    ):
        seconds, is_valid = to_seconds(empty, "Asia/Tokyo")
        assert seconds.shape == is_valid.shape == (0,)


def test_a_small_number_takes_the_unit_of_its_column():
    assert to_seconds([86_400_000, 1_512_086_400_000, -1], None)[0].tolist() == [
        86_400,
        1_512_086_400,
        -1,
    ]


@pytest.mark.parametrize("name", ["America/New_Yrok", "../etc/passwd", "", "America"])
def test_an_unknown_zone_is_an_error(name):
    nearest = "did you mean 'America/New_York'" if name == "America/New_Yrok" else ""
    with pytest.raises(SchemaError, match=f"time zone '{name}' is unknown; {nearest}"):
        to_seconds(["2017-12-01"], name)


ZONES = [
    "America/New_York",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "UTC",
]
MOMENT = st.integers(-(2**31), 2**32)


@given(st.lists(MOMENT, min_size=1, max_size=7), st.sampled_from(ZONES))
@settings(max_examples=60, deadline=None)
def test_the_calendar_is_that_of_the_clocks_of_the_zone(moments, zone):
    local = [
        datetime.fromtimestamp(0, ZoneInfo(zone)).astimezone(UTC) + timedelta(seconds=m)
        for m in moments
    ]
    local = [moment.astimezone(ZoneInfo(zone)) for moment in local]
    assert read("hour_of_day", moments, zone) == [moment.hour for moment in local]
    assert read("day_of_week", moments, zone) == [moment.weekday() for moment in local]
    assert read("month_of_year", moments, zone) == [moment.month - 1 for moment in local]
    assert read("week_of_year", moments, zone) == [count_weeks(m) for m in local]


def read(kind, moments, zone=None):
    return read_calendar(kind, np.array(moments), zone).tolist()


def count_weeks(moment):
    """Count the whole weeks since 1 January, by the day of the year."""
    return (moment.timetuple().tm_yday - 1) // 7


@pytest.mark.parametrize("year", [4, 1600, 1899, 1900, 1968, 1969, 1999, 2000, 2023, 2024, 9998])
def test_each_day_of_a_year_has_its_month_and_its_week(year):
    first = datetime(year, 1, 1, tzinfo=UTC)
    days = [first + timedelta(days=n) for n in range((first.replace(year=year + 1) - first).days)]
    for second in (0, 86_399):
        moments = [int(day.timestamp()) + second for day in days]
        assert read("month_of_year", moments) == [day.month - 1 for day in days]
        assert read("week_of_year", moments) == [count_weeks(day) for day in days]
        assert read("week_of_year", moments)[-1] == 52


@given(
    st.lists(st.datetimes(datetime(1950, 1, 1), datetime(2050, 1, 1)), min_size=1),
    st.sampled_from(ZONES),
)
@settings(max_examples=60, deadline=None)
def test_naive_times_are_read_as_the_zone_reads_them(moments, zone):
    moments = [moment.replace(fold=0) for moment in moments]  # tables do not tell which of two
    expected = [int(m.replace(microsecond=0, tzinfo=ZoneInfo(zone)).timestamp()) for m in moments]
    for values in (
        moments,
        np.array(moments, "datetime64[us]"),
        [m.isoformat() for m in moments],
    ):
        assert to_seconds(values, zone)[0].tolist() == expected


@given(st.text(max_size=25))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_time_a_fault_or_an_ambiguous_number(text):
    try:
        seconds, is_valid = to_seconds([text, "2017-12-01T00:00:00.5", "2017-12-02"], None)
    except SchemaError as error:
        pytest.fail(str(error))
    assert is_valid[1:].all()
    assert is_valid[0] or seconds[0] == 0
