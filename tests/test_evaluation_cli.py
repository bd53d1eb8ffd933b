from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import evaluation.__main__
from evaluation.__main__ import main
from evaluation.frames import read_interactions, read_moment, read_users
from evaluation.histories import profiles_from_frame
from evaluation.joins import check_reachable, say_gaps, say_leaks, say_strangers
from evaluation.validation import hold_out_last, hold_out_pairs, hold_out_window, sample_users
from serve.bundle import Bundle
from serve.errors import SchemaError
from serve.schema import Feature
from tests.fake_recommender import FakeRecommender
from tests.tiny_bundle import SCHEMA, item_ids, publish_tiny

USERS = ["007", "8", "NA"]
AT = 1_600_000_000
DAY = 86_400


def make_rows(n, first, last, seed) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "user_id": rng.choice(USERS, n),
            "item_id": rng.choice(item_ids(), n),
            "datetime": pd.to_datetime(rng.integers(first, last, n), unit="s").strftime("%Y-%m-%d %H:%M:%S"),
            "weight": rng.integers(1, 5, n),
            "device": rng.choice(["web", "phone"], n),
            "event": rng.choice(["view", "buy"], n),
        }
    )


TRAIN = make_rows(59, AT - 90 * DAY, AT, 1)
HOLDOUT = make_rows(17, AT, AT + 20 * DAY, 2)


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory):
    return publish_tiny(tmp_path_factory.mktemp("run"), seed=1).path


@pytest.fixture
def built(monkeypatch):
    """Put the fake in the place of the recommender, and keep what it was built of."""
    made = []

    def build(bundle, profiles):
        made.append((bundle, profiles))
        owned = {user: set(profiles.get(user).history.item_id) for user in profiles.user_ids}
        return FakeRecommender(item_ids(), USERS, owned)

    monkeypatch.setattr(evaluation.__main__, "Recommender", build)
    return made


def write(folder, frame, name):
    path = folder / name
    frame.to_csv(path, index=False) if ".csv" in name else frame.to_parquet(path)
    return str(path)


def arguments(bundle_folder, tmp_path, kind=".csv"):
    holdout, train = write(tmp_path, HOLDOUT, f"holdout{kind}"), write(tmp_path, TRAIN, f"train{kind}")
    return ["--bundle", str(bundle_folder), "--holdout", holdout, "--train", train]


@pytest.mark.parametrize("kind", [".csv", ".csv.gz", ".parquet"])
def test_figures_of_a_bundle_and_a_holdout(bundle_folder, built, tmp_path, capsys, kind):
    out = tmp_path / "figures.json"
    options = ["--at", "2020-09-13T12:26:40", "--json", str(out)]
    assert main([*arguments(bundle_folder, tmp_path, kind), *options]) == 0
    metrics = json.loads(out.read_text())
    assert metrics["protocol"]["n_users"] == 3
    assert metrics["test"]["bascule"]["all"]["targets"] == len(HOLDOUT.drop_duplicates(["user_id", "item_id"]))
    assert metrics["baselines"]["personal-decayed"]["validation"]
    said = capsys.readouterr()
    assert "view 'all', 3 users" in said.out
    assert "view 'novel'" in said.out
    assert "NDCG@20" in said.out
    assert "ease: lambda" in said.err
    (_, profiles), *_ = built
    assert profiles.user_ids.tolist() == USERS
    assert len(profiles.history) == len(TRAIN)


def test_without_a_moment_each_user_is_a_request_and_each_time_one_with_context(bundle_folder, built, tmp_path):
    out = tmp_path / "figures.json"
    users = pd.DataFrame({"user_id": ["8", "007"], "gender": ["f", None], "income": [2.5, None]})
    options = ["--json", str(out), "--users", write(tmp_path, users, "users.csv")]
    assert main([*arguments(bundle_folder, tmp_path), *options]) == 0
    metrics = json.loads(out.read_text())
    assert metrics["protocol"]["n_requests"] == HOLDOUT["user_id"].nunique()
    n_times = len(HOLDOUT.drop_duplicates(["user_id", "datetime"]))
    assert metrics["protocol"]["with_context"].startswith(f"{n_times} requests, one per user and time")
    assert list(metrics["with_context"]) == ["bascule", "bascule without context"]
    assert set(metrics["slices"]["all"]["gender"]) == {"f", "missing"}
    assert set(metrics["slices"]["all"]["income"]) == {"2.5", "missing"}
    ((_, profiles),) = built
    assert profiles.get("8").features == {"gender": "f", "income": 2.5}
    assert profiles.get("007").features == {"gender": None, "income": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--at": "yesterday"}, "moment 'yesterday' cannot be read"),
        ({"--holdout": "nowhere.csv"}, "nowhere.csv: no such file"),
        ({"--train": "train.xlsx"}, "cannot read '.xlsx'; allowed: .csv, .csv.gz, .parquet"),
        ({"--train": "train.jsonl.gz"}, "cannot read '.jsonl.gz'; allowed: .csv, .csv.gz, .parquet"),
        ({"--bundle": "nowhere"}, "nowhere"),
        ({"--json": "no/folder/out.json"}, "no/folder"),
    ],
)
def test_faults_are_one_line(bundle_folder, built, tmp_path, capsys, change, message):
    options = arguments(bundle_folder, tmp_path)
    pairs = dict(zip(options[::2], options[1::2], strict=True)) | change
    assert main([word for pair in pairs.items() for word in pair]) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("error: ")
    assert message in last


@pytest.mark.parametrize("change", [lambda content: content[:-9], lambda content: content[:30] + b"\0" + content[31:]])
def test_a_compressed_file_that_is_damaged_is_one_line(bundle_folder, built, tmp_path, capsys, change):
    options = arguments(bundle_folder, tmp_path, ".csv.gz")
    path = tmp_path / "holdout.csv.gz"
    path.write_bytes(change(path.read_bytes()))
    assert main(options) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert "holdout.csv.gz: cannot be read: " in last


def evaluate_frames(bundle_folder, tmp_path, holdout, train):
    parts = (("--holdout", holdout), ("--train", train))
    files = [word for name, rows in parts for word in (name, write(tmp_path, rows, f"{name}.csv"))]
    return main(["--bundle", str(bundle_folder), *files, "--baselines"])


def test_a_holdout_of_items_that_are_not_in_the_catalogue_is_refused(bundle_folder, built, tmp_path, capsys):
    holdout = HOLDOUT.assign(item_id=np.arange(len(HOLDOUT)) % 5 + 1)
    assert evaluate_frames(bundle_folder, tmp_path, holdout, TRAIN) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: none of the 5 items of --holdout is in the bundle's catalogue: item_id is '1' in the holdout and "
        "'item-00' in the catalogue; expected: "
    )
    holdout = holdout.assign(item_id=["item-01", *holdout["item_id"][1:]])
    assert evaluate_frames(bundle_folder, tmp_path, holdout, TRAIN) == 0


def test_a_holdout_that_is_in_the_histories_already_is_refused_where_nothing_is_recommended_again():
    first, *_, last = HOLDOUT[["user_id", "item_id"]].drop_duplicates().itertuples(index=False)
    catalogue = pd.Series(item_ids())
    with pytest.raises(SchemaError, match=f"in --train, as '{first.user_id}' has '{first.item_id}', and this bundle"):
        check_reachable(HOLDOUT, HOLDOUT, catalogue, "exclude")
    outside = pd.DataFrame({"user_id": ["8"], "item_id": ["gone"]})
    with pytest.raises(SchemaError, match="leave the events of the holdout out of --train"):
        check_reachable(pd.concat([outside, HOLDOUT]), HOLDOUT, catalogue, "exclude")
    check_reachable(HOLDOUT, HOLDOUT, catalogue, "allow")
    is_last = (HOLDOUT["user_id"] == last.user_id) & (HOLDOUT["item_id"] == last.item_id)
    check_reachable(HOLDOUT, HOLDOUT[~is_last], catalogue, "exclude")
    check_reachable(HOLDOUT[:0], HOLDOUT, catalogue, "exclude")


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (["8"], "note: users of --holdout without an event in --train: 2 of 3; all of them are"),
        (["8", "007"], None),
    ],
)
def test_a_holdout_of_mostly_unknown_users_is_noted(bundle_folder, built, tmp_path, capsys, known, said):
    holdout = HOLDOUT.sort_values("user_id")
    assert evaluate_frames(bundle_folder, tmp_path, holdout, TRAIN[TRAIN["user_id"].isin(known)]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(lines) == (said is not None)
    assert all(line.startswith(said) for line in lines)


@pytest.mark.parametrize(("known", "said"), [("abx", None), ("ax", "3 of 4;"), ("", "4 of 4;")])
def test_strangers_are_told_of_where_they_are_more_than_half_of_the_users(known, said):
    """However many events each of them has."""
    holdout = pd.DataFrame({"user_id": list("abccccccd")})
    note = say_strangers(holdout, pd.DataFrame({"user_id": list(known)}, dtype=object))
    assert note is None if said is None else said in note


@pytest.mark.parametrize(
    ("read", "lacking"),
    [
        ({"has_datetime": False, "event_types": (), "has_weight": False}, None),
        ({"has_datetime": False, "event_types": ("buy",), "has_weight": True}, "event, weight"),
        ({"has_datetime": True, "event_types": (), "has_weight": True}, "datetime, weight"),
    ],
)
def test_only_columns_that_the_bundle_reads_are_said_to_be_lacking(read, lacking):
    note = say_gaps(pd.DataFrame({"user_id": ["a"], "item_id": ["b"]}), replace(SCHEMA, **read))
    assert note is None if lacking is None else f"--train lacks: {lacking}; they" in note


def test_an_event_at_the_moment_of_the_question_is_not_known_then():
    train = pd.DataFrame({"user_id": list("abc"), "item_id": list("pqr"), "datetime": [AT - 1, AT, AT + 1]})
    (note,) = say_leaks(train[:0], train, AT)
    assert note.startswith("events of --train at or after --at: 2 of 3;")
    (note,) = say_leaks(train[:0], train[:2], AT)
    assert note.startswith("events of --train at or after --at: 1 of 2;")
    assert say_leaks(train[:0], train[:1], AT) == say_leaks(train[:0], train, None) == []


def test_columns_that_histories_lack_are_noted(bundle_folder, built, tmp_path, capsys):
    """A column of times called otherwise was no word: the bundle was measured as if it knew no times."""
    train = TRAIN.rename(columns={"datetime": "ts"}).drop(columns="event")
    assert evaluate_frames(bundle_folder, tmp_path, HOLDOUT, train) == 0
    assert "--train lacks: datetime, event; they count as missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "at", "said"),
    [
        (HOLDOUT[:5], None, ["events of --holdout that are in --train too: 5 of 17;"]),
        (HOLDOUT[:5].assign(weight=9), None, []),
        (HOLDOUT[:5].assign(weight=9), AT, ["events of --train at or after --at: 5 of 64;"]),
        (HOLDOUT[:0], AT, []),
    ],
)
def test_a_test_that_histories_hold_is_noted(bundle_folder, built, tmp_path, capsys, more, at, said):
    """Where repeats are allowed a list of what was to be predicted read as a good one."""
    write(tmp_path, HOLDOUT, "holdout.csv"), write(tmp_path, pd.concat([TRAIN, more]), "train.csv")
    options = ["--holdout", str(tmp_path / "holdout.csv"), "--train", str(tmp_path / "train.csv"), "--baselines"]
    assert main(["--bundle", str(bundle_folder), *options, *([] if at is None else [f"--at={at}"])]) == 0
    lines = [line.removeprefix("note: ") for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(lines) == len(said)
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--json={}/none/figures.json", "has no folder {}/none; give a file"),
        ("--json={}", "is a folder; give a file"),
        ("--json={}/train.csv", "train.csv is a file that is read"),
        ("--seed=-1", "--seed is -1; allowed: 0 and above"),
    ],
)
def test_what_cannot_be_written_is_refused_before_baselines(bundle_folder, built, tmp_path, capsys, option, said):
    """They were fitted for minutes, and then the figures were lost, or a table that they took the place of."""
    assert main([*arguments(bundle_folder, tmp_path), option.format(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said.format(tmp_path) in line
    assert not built


@pytest.mark.parametrize("source", ["--holdout", "--train", "--users"])
def test_figures_take_the_place_of_nothing_that_is_read(bundle_folder, built, tmp_path, capsys, source):
    users = write(tmp_path, pd.DataFrame({"user_id": ["8"], "gender": ["f"], "income": [2.5]}), "users.csv")
    words = [*arguments(bundle_folder, tmp_path), "--users", users, "--baselines"]
    path = words[words.index(source) + 1]
    before = Path(path).read_bytes()
    assert main([*words, f"--json={path}"]) == 2
    assert f"{path} is a file that is read, and the figures would replace it" in capsys.readouterr().err
    assert Path(path).read_bytes() == before


def test_any_unfit_value_is_one_line(bundle_folder, built, tmp_path, capsys, monkeypatch):
    def fail(*arguments, **named):
        raise ValueError("no such\n  thing")

    monkeypatch.setattr(evaluation.__main__, "evaluate", fail)
    assert main(arguments(bundle_folder, tmp_path)) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: no such thing"


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (TRAIN.rename(columns={"item_id": "item"}), "no column 'item_id'; did you mean 'item'"),
        (TRAIN.assign(user_id=[None, *TRAIN["user_id"][1:]]), "user_id is nan in record 1"),
        (
            TRAIN.assign(datetime=["2020-13-01 00:00:00", *TRAIN["datetime"][1:]]),
            "'2020-13-01 00:00:00' in record 1",
        ),
        (TRAIN.assign(weight=["many", *TRAIN["weight"][1:]]), "weight is 'many' in record 1"),
        (TRAIN.assign(position=["first", *range(1, 59)]), "position is 'first' in record 1"),
        (TRAIN.assign(weight=-2.5), "weight is '-2.5' in record 1"),
        (TRAIN.assign(weight=["0", "inf", *["1"] * 57]), "weight is 'inf' in record 2"),
        (TRAIN.assign(position=["0", "-inf", *["1"] * 57]), "position is '-inf' in record 2"),
        (TRAIN[:0].drop(columns=list(TRAIN)), "cannot be read"),
    ],
)
def test_unreadable_interactions_are_refused(tmp_path, frame, message):
    path = tmp_path / "events.csv"
    frame.to_csv(path, index=False)
    with pytest.raises(SchemaError) as caught:
        read_interactions(path, SCHEMA)
    assert message in str(caught.value)
    assert "events.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user_id,item_id,stars\n11,12,5,\n13,14,4,\n", "Expected 3 fields in line 2, saw 4"),
        ("user_id,item_id,stars\n11,12,5\n13,14,4,\n", "Expected 3 fields in line 3, saw 4"),
        ("user_id,item_id,item_id\n11,12,13\n", "two columns are called 'item_id'; rename all but one"),
    ],
)
def test_no_cell_is_read_under_the_name_of_another_column(tmp_path, text, message):
    path = tmp_path / "events.csv"
    path.write_text(text)
    with pytest.raises(SchemaError, match=message):
        read_interactions(path, SCHEMA)


def test_lists_as_ids_are_refused(tmp_path):
    path = tmp_path / "events.parquet"
    pd.DataFrame({"user_id": [11], "item_id": [[12]]}).to_parquet(path)
    with pytest.raises(SchemaError, match=r"events\.parquet: item_id holds lists; allowed: whole numbers or texts"):
        read_interactions(path, SCHEMA)


@pytest.mark.parametrize(
    ("column", "kind"), [("item_id", "categorical"), ("event", "categorical"), ("datetime", "numeric")]
)
def test_context_of_an_own_column_leaves_it_as_it_is(tmp_path, column, kind):
    """The ids were those of no bundle then, and times a traceback."""
    path, context = tmp_path / "rows.parquet", (Feature("own", kind, column),)
    rows = {"user_id": [11], "item_id": [12], "event": [3], "datetime": [pd.Timestamp("2020-09-13 12:26:40")]}
    pd.DataFrame(rows).to_parquet(path)
    schema = replace(SCHEMA, item_id_type="integer", context_features=context)
    got = read_interactions(path, schema)
    assert got[["item_id", "event", "datetime"]].to_numpy(object).tolist() == [[12, "3", AT]]
    assert pd.api.types.is_integer_dtype(got["item_id"])


def test_lists_as_categories_are_refused(tmp_path):
    """Each user had a value that nobody has, and was measured in a group of her own."""
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"user_id": [11], "item_id": [12], "device": [["web", "phone"]]}).to_parquet(path)
    with pytest.raises(SchemaError, match=r"rows\.parquet: device holds lists; expected one value each"):
        read_interactions(path, SCHEMA)
    none = pd.DataFrame({"user_id": [], "item_id": [], "device": pd.Series([], dtype="category")})
    none.to_parquet(path)
    assert read_interactions(path, SCHEMA).empty


def test_time_spans_as_times_are_refused(tmp_path):
    path = tmp_path / "events.parquet"
    pd.DataFrame({"user_id": [11], "item_id": [12], "datetime": pd.to_timedelta([3], unit="D")}).to_parquet(path)
    with pytest.raises(SchemaError, match=r"events\.parquet: datetime is Timedelta.* in record 1, which cannot"):
        read_interactions(path, SCHEMA)


@pytest.mark.parametrize("text", ["\ufeffuser_id,item_id,,\n11,12\n", "user_id,item_id\n\n11,12\n"])
def test_a_byte_order_mark_nameless_columns_and_blank_lines_do_no_harm(tmp_path, text):
    path = tmp_path / "events.csv"
    path.write_text(text)
    got = read_interactions(path, SCHEMA)
    assert got.to_dict("list") == {"user_id": ["11"], "item_id": ["12"]}


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_interactions_come_in_the_types_of_the_bundle(tmp_path, kind):
    frame = pd.DataFrame(
        {
            "user_id": [12, 5, 12],
            "item_id": ["007", "NA", "8"],
            "datetime": [AT, AT + 7, AT + 1],
            "event": [" buy ", None, "view"],
            "position": [2, 3, 5],
            "other": 1,
        }
    )
    path = tmp_path / f"events{kind}"
    frame.to_csv(path, index=False) if kind == ".csv" else frame.to_parquet(path)
    got = read_interactions(path, replace(SCHEMA, user_id_type="integer"))
    assert got["user_id"].tolist() == [12, 5, 12]
    assert got["user_id"].dtype == np.int64
    assert got["item_id"].tolist() == ["007", "NA", "8"]
    assert got["datetime"].tolist() == [AT, AT + 7, AT + 1]
    assert got["position"].tolist() == [2, 3, 5]
    assert "other" not in got
    profiles = profiles_from_frame(got, pd.DataFrame({"user_id": [3, 12]}), SCHEMA)
    assert profiles.user_ids.tolist() == [3, 5, 12]
    assert profiles.get(12).history.item_id.tolist() == ["007", "8"]
    assert profiles.get(12).history.event.tolist() == ["buy", "view"]
    assert pd.isna(profiles.get(5).history.event[0])
    assert len(profiles.get(3).history) == 0


def test_messages_show_what_the_file_says(tmp_path):
    """They showed np.int64(7), which no file holds."""
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"user_id": [7, 7], "gender": "f", "income": 1}).to_parquet(path)
    with pytest.raises(SchemaError, match="user_id 7 is there twice"):
        read_users(path, replace(SCHEMA, user_id_type="integer"))
    pd.DataFrame({"user_id": [11], "item_id": [12], "weight": [-1]}).to_parquet(path)
    with pytest.raises(SchemaError, match="weight is -1 in record 1"):
        read_interactions(path, SCHEMA)


def test_numbers_of_users_are_numbers(tmp_path):
    path = tmp_path / "users.csv"
    pd.DataFrame({"user_id": ["a", "b"], "gender": ["f", None], "income": ["2.50", None]}).to_csv(path, index=False)
    income = read_users(path, SCHEMA)["income"]
    assert income.dtype == np.float64
    np.testing.assert_array_equal(income, [2.5, np.nan])


def test_a_user_twice_is_refused(tmp_path):
    path = tmp_path / "users.csv"
    pd.DataFrame({"user_id": ["a", "b", "a"], "gender": "f", "income": 1}).to_csv(path, index=False)
    with pytest.raises(SchemaError, match="user_id 'a' is there twice"):
        read_users(path, SCHEMA)


def test_a_missing_feature_column_is_refused(tmp_path):
    path = tmp_path / "users.csv"
    pd.DataFrame({"user_id": ["a", "b"], "gander": "f", "income": 1}).to_csv(path, index=False)
    with pytest.raises(SchemaError, match="no column 'gender'; did you mean 'gander'"):
        read_users(path, SCHEMA)


def test_moments_are_read_in_the_zone_of_the_bundle():
    assert read_moment("2020-09-13T12:26:40Z", None) == AT
    assert read_moment("2020-09-13T14:26:40", "Europe/Berlin") == AT


def test_histories_are_oldest_first():
    rows = pd.DataFrame({"user_id": ["b", "a", "b", "b"], "item_id": list("pqrs"), "datetime": [9, 4, 2, 9]})
    rows["weight"] = [0.5, 0.25, 0.0, 3.0]
    profiles = profiles_from_frame(rows, pd.DataFrame({"user_id": []}, dtype=object), SCHEMA)
    assert profiles.get("b").history.item_id.tolist() == ["r", "p", "s"]
    assert profiles.get("b").history.datetime.tolist() == [2, 9, 9]
    assert profiles.get("b").history.weight.tolist() == [0.0, 0.5, 3.0]
    assert profiles.get("a").features == {}


def test_position_orders_equal_times():
    rows = pd.DataFrame({"user_id": "b", "item_id": list("pqrs"), "datetime": [9, 2, 9, 9], "position": [7, 8, 5, 5]})
    nobody = pd.DataFrame({"user_id": []}, dtype=object)
    assert profiles_from_frame(rows, nobody, SCHEMA).get("b").history.item_id.tolist() == ["q", "r", "s", "p"]


def test_the_last_moment_of_each_user_is_held_out():
    rows = pd.DataFrame({"user_id": list("abaab"), "item_id": list("pqrst"), "datetime": [3, 5, 7, 7, 5]})
    train, validation = hold_out_last(rows)
    assert train.index.tolist() == [0, 1, 4]  # b has one moment only
    assert validation.index.tolist() == [2, 3]
    train, validation = hold_out_last(rows.drop(columns="datetime").assign(position=[9, 4, 5, 2, 3]))
    assert validation.index.tolist() == [0, 1]


def test_a_window_is_held_out():
    rows = pd.DataFrame({"user_id": list("abaab"), "datetime": [3, 5, 7, 6, 1]})
    train, validation = hold_out_window(rows, at=8, length=2)
    assert (train.index.tolist(), validation.index.tolist()) == ([0, 1, 4], [2, 3])


def test_pairs_are_held_out_whatever_the_order_of_rows():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"user_id": rng.integers(40, size=3000), "item_id": rng.integers(50, size=3000)})
    train, validation = hold_out_pairs(rows, 0.2, seed=3)
    assert sorted([*train.index, *validation.index]) == rows.index.tolist()
    pairs, held_out = (set(part.itertuples(index=False, name=None)) for part in (train, validation))
    assert not pairs & held_out  # all rows of a pair together
    assert len(held_out) / len(pairs | held_out) == pytest.approx(0.2, abs=0.03)
    shuffled = hold_out_pairs(rows.sample(frac=1, random_state=1), 0.2, seed=3)[1]
    assert sorted(shuffled.index) == validation.index.tolist()
    assert hold_out_pairs(rows, 0.2, seed=4)[1].index.tolist() != validation.index.tolist()
    assert [len(part) for part in hold_out_pairs(rows[:0], 0.2, seed=3)] == [0, 0]
    assert set(hold_out_pairs(rows, 0.95, seed=3)[0]["user_id"]) == set(rows["user_id"])  # nobody loses her last pair


@pytest.fixture
def given(monkeypatch):
    """Keep what an evaluation is given, and end there."""
    seen = []

    def keep(*arguments):
        seen.extend(arguments)
        raise ValueError("enough")

    monkeypatch.setattr(evaluation.__main__, "evaluate", keep)
    return seen


@pytest.mark.parametrize(("first", "last"), [(10, 0), (90, 30)], ids=["all in it", "none in it"])
def test_baselines_are_validated_by_last_moments_where_a_window_would_leave_nothing(
    bundle_folder, built, tmp_path, given, first, last
):
    rows = make_rows(59, AT - first * DAY, AT - last * DAY, 1)
    path = write(tmp_path, rows, "early.csv")
    assert main([*arguments(bundle_folder, tmp_path), "--train", path, "--at", str(AT)]) == 2
    _, _, train, validation, *_ = given
    is_last = rows["datetime"] == rows.groupby("user_id")["datetime"].transform("max")
    assert validation.index.tolist() == np.flatnonzero(is_last).tolist()
    assert sorted([*train.index, *validation.index]) == list(range(59))


def test_times_and_the_moment_are_of_the_zone_of_the_bundle(bundle_folder, built, tmp_path, given, monkeypatch):
    bundle = Bundle.load(bundle_folder)
    in_berlin = replace(bundle, schema=replace(bundle.schema, timezone="Europe/Berlin"))
    monkeypatch.setattr(Bundle, "load", lambda _: in_berlin)
    assert main([*arguments(bundle_folder, tmp_path), "--at", "2020-09-13 14:26:40"]) == 2
    _, holdout, train, validation, _, at, *_ = given
    assert at == AT
    of_utc = pd.to_datetime(pd.concat([HOLDOUT, TRAIN])["datetime"]).astype("datetime64[s]").astype(np.int64)
    shifts = of_utc.to_numpy() - pd.concat([holdout, pd.concat([train, validation]).sort_index()])["datetime"]
    assert set(shifts) == {7200}


def test_without_times_baselines_are_validated_by_as_many_pairs_as_are_held_out(
    bundle_folder, built, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr("evaluation.__main__.hold_out_pairs", lambda *args: asked.append(args) or hold_out_pairs(*args))
    options = ["--bundle", str(bundle_folder), "--seed", "5", "--baselines", "itemknn"]
    for name, rows in (("train", TRAIN), ("holdout", HOLDOUT)):
        options += [f"--{name}", write(tmp_path, rows.drop(columns="datetime"), f"{name}.csv")]
    assert main(options) == 0
    ((train, share, seed),) = asked
    assert len(train) == len(TRAIN)
    n_pairs = [len(set(zip(rows["user_id"], rows["item_id"], strict=True))) for rows in (HOLDOUT, TRAIN)]
    assert n_pairs[1] < len(TRAIN)
    assert share == n_pairs[0] / sum(n_pairs)
    assert seed == 5


def test_validation_users_are_drawn_by_the_seed(monkeypatch):
    monkeypatch.setattr("evaluation.validation.MOST_USERS", 3)
    rows = pd.DataFrame({"user_id": list("abcdefgabc")})
    drawn = [sample_users(rows, seed) for seed in (1, 1, 2)]
    assert drawn[0].equals(drawn[1])
    assert drawn[0]["user_id"].nunique() == drawn[2]["user_id"].nunique() == 3
    assert {tuple(part["user_id"].unique()) for part in drawn} != {tuple(drawn[0]["user_id"].unique())}
    assert sample_users(rows[:2], 1).equals(rows[:2])
    assert set(sample_users(rows[::-1], 1)["user_id"]) == set(drawn[0]["user_id"])  # whatever the order of rows


@pytest.mark.parametrize(("words", "names"), [([], []), (["itemknn", "popularity"], ["popularity", "itemknn"])])
def test_the_baselines_that_are_named(bundle_folder, built, tmp_path, words, names):
    out = tmp_path / "figures.json"
    options = ["--json", str(out), "--baselines", *words]
    assert main([*arguments(bundle_folder, tmp_path), *options]) == 0
    assert list(json.loads(out.read_text())["baselines"]) == names
