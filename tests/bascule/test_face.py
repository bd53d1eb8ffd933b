"""The face of the package: what is asked in any form is what serving answers, under names and in tables."""

from __future__ import annotations

import copy
import doctest
import gc
import inspect
import pickle  # noqa: TID251
import shutil
import subprocess
import sys
import uuid
from dataclasses import replace
from xml.etree import ElementTree

import bascule.recommender
import numpy as np
import pandas as pd
import pipeline.tables
import pyarrow as pa
import pytest
from bascule.forms import Answers, to_ids
from scipy import sparse
from serve.due import find_due
from serve.errors import BundleError, SchemaError
from serve.recommendations import Segment, Segments
from serve.requests import Request
from service.state import StateStore
from tests.linear_bundle import N
from tests.models.tiny_towers import one_thread
from tests.pipeline.small_runs import ORDERED, make_tables, trace_exports
from tests.served import ROOT

import bascule


@pytest.fixture
def shop(bundle_paths, tmp_path, monkeypatch):
    """Give a recommender of a shop whose run lies in the working directory, as `runs/shop`."""
    shutil.copytree(bundle_paths["shop"].parent, tmp_path / "runs" / "shop")
    monkeypatch.chdir(tmp_path)
    return bascule.load("runs/shop")


def run_examples(module, **names):
    finder, runner = (
        doctest.DocTestFinder(),
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS),
    )
    for test in finder.find(module, extraglobs={"bascule": bascule, **names}):
        runner.run(test)
    assert runner.summarize().failed == 0
    assert runner.tries > 3


def test_the_examples_of_a_recommender_give_what_they_say(shop):
    run_examples(bascule.recommender, recommender=shop)


@pytest.mark.slow
def test_the_examples_of_the_package_give_what_they_say(shop, monkeypatch):
    trace_exports(monkeypatch)
    rng = np.random.default_rng(0)
    events = pd.DataFrame({"user_id": np.arange(300) % 30, "item_id": rng.integers(12, size=300)})
    items = pd.DataFrame(
        {"item_id": np.arange(12), "category": [f"c{item % 3}" for item in range(12)]}
    )
    with one_thread():
        run_examples(bascule, events=events, items=items)


def rows_of(answers):
    return [[(row["item_id"], round(row["score"], 3)) for row in one] for one in answers]


def test_users_requests_frames_and_histories_are_asked_alike(shop):
    lists = shop.served.recommend([{"user_id": "u0"}, {"user_id": "u1"}], k=4)
    expected = [
        [
            (item_id, round(score, 3))
            for item_id, score in zip(one.item_id.tolist(), one.score.tolist(), strict=True)
        ]
        for one in lists
    ]
    frame = pd.DataFrame({"user_id": ["u0", "u1"], "device": [None, np.nan]})
    for asked in (
        ["u0", "u1"],
        [{"user_id": "u0"}, Request("u1")],
        np.array(["u0", "u1"], dtype=object),
        frame["user_id"],
        frame,
        frame.assign(device=[pd.NA, pd.NA]),
        pa.table({"user_id": ["u0", "u1"], "device": pa.nulls(2, pa.string())}),
        pa.chunked_array([["u0"], ["u1"]]),
        {"u0": None, "u1": None}.keys(),
    ):
        assert rows_of(shop.recommend(asked, k=4)) == expected
    assert rows_of(shop.recommend("u1", k=4)) == expected[1:]
    history = [{"item_id": "i107"}, {"item_id": "i114"}]
    assert rows_of(shop.recommend([["i107", "i114"]], 3)) == rows_of(
        shop.recommend({"history": history}, 3)
    )
    assert rows_of(shop.recommend({"history": ["i107", "i114"]}, 3)) == rows_of(
        shop.recommend({"history": history}, 3)
    )


def test_cells_of_a_frame_are_features_and_contexts_of_its_request(shop):
    frame = pd.DataFrame(
        {
            "user_id": ["u1"],
            "gender": ["m"],
            "device": ["web"],
            "datetime": [1_500_000_000],
        }
    )
    asked = {
        "user_id": "u1",
        "features": {"gender": "m"},
        "context": {"device": "web"},
        "datetime": 1_500_000_000,
    }
    assert rows_of(shop.recommend(frame)) == rows_of(shop.recommend(asked))
    with pytest.raises(SchemaError, match="devise"):
        shop.recommend(frame.rename(columns={"device": "devise"}))


def test_what_was_just_taken_is_held_back_unless_any_is_wanted(shop):
    (taken,) = (row["item_id"] for row in shop.recommend("u1", k=1, repeats="allow")[0])
    held = shop.recommend([[taken]], k=N, repeats="allow")
    assert taken not in {row["item_id"] for row in held[0]}
    assert "held back: 1" in held.notes[-1]
    for asked in ([[taken]], [{"history": [taken], "again": "any"}]):
        again = "any" if asked == [[taken]] else "due"
        answers = shop.recommend(asked, k=N, repeats="allow", again=again)
        assert taken in {row["item_id"] for row in answers[0]}
        assert not [note for note in answers.notes if "held back" in note]


def test_a_table_of_polars_is_asked_and_answered(shop):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"user_id": ["u0", "u1"], "device": ["web", None]})
    asked = [{"user_id": "u0", "context": {"device": "web"}}, "u1"]
    answers = shop.recommend(frame, k=3)
    assert rows_of(answers) == rows_of(shop.recommend(asked, k=3))
    assert rows_of(shop.recommend(frame["user_id"], k=3)) == rows_of(
        shop.recommend(["u0", "u1"], k=3)
    )
    assert answers.to_polars().rows() == [tuple(row.values()) for one in answers for row in one]


def test_answers_in_polars_need_polars(shop, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ModuleNotFoundError, match="polars"):
        shop.recommend("u0").to_polars()


def test_answers_are_an_arrow_table(shop):
    answers = shop.recommend(["u0", "u1"], k=2)
    assert answers.to_arrow().to_pylist() == [row for one in answers for row in one]
    assert answers.to_arrow().num_rows == 4


@pytest.mark.parametrize("k", ["5", None, 1.0, 0, -1])
@pytest.mark.parametrize("verb", ["recommend", "similar_items", "similar_users", "explain", "due"])
def test_a_number_of_items_that_is_none_is_refused_by_its_name(shop, verb, k):
    with pytest.raises(SchemaError, match=r"^k is [^\n]*$"):
        getattr(shop, verb)("i107" if verb == "similar_items" else "u0", k=k)


def test_a_number_of_items_may_be_one_of_numpy(shop):
    assert rows_of(shop.recommend("u0", k=np.int64(3))) == rows_of(shop.recommend("u0", k=3))


@pytest.mark.parametrize(
    "asked",
    [None, 1.0, b"u0", object(), [1.5], {"user": "u0"}],
    ids=lambda asked: type(asked).__name__,
)
def test_what_is_no_user_is_refused_in_one_line(shop, asked):
    with pytest.raises(SchemaError) as error:
        shop.recommend(asked)
    assert len(str(error.value).splitlines()) == 1


def test_repeats_are_allowed_or_excluded_and_nothing_else(shop):
    with pytest.raises(SchemaError, match="maybe"):
        shop.recommend("u0", repeats="maybe")


def test_a_notebook_shows_a_table_of_ten_rows_with_notes_and_nothing_in_it_is_markup():
    name = "<script>alert('&')</script>"
    table = pa.table({"request": [0] * 12, "name": [name] * 12, "score": [0.5] * 12})
    page = ElementTree.fromstring(Answers(table, 1, ("unknown <b>",))._repr_html_())
    rows = [[cell.text for cell in row] for row in page.find("table")]
    assert rows == [["request", "name", "score"], *[["0", name, "0.5"]] * 10]
    assert [cell.tag for cell in page.find("table")[0]] == ["th"] * 3
    notes = [note.text for note in page.findall("p")]
    assert "12" in notes[0]
    assert notes[1].endswith("unknown <b>")


def test_what_nobody_knows_is_noted_once_with_the_first_of_each(shop):
    asked = [
        ["i107", "zzz"],
        {"user_id": "nobody"},
        {"user_id": "noone", "features": {"gender": "q"}},
    ]
    notes = shop.recommend(asked, k=2, again="any").notes
    assert [note for note in notes if "zzz" in note and "items: 1" in note] == [notes[1]]
    assert "users: 2" in notes[0]
    assert "nobody" in notes[0]
    assert "features.gender" in notes[2]
    assert len(notes) == 3
    assert list(shop.recommend([["i107"], "u0"], k=2, again="any").notes) == []
    for verb in ("explain", "similar_users"):
        assert notes[0] in getattr(shop, verb)(asked, k=2).notes


def test_a_pickle_holds_the_place_and_the_version_and_is_read_again(shop, tmp_path):
    text = pickle.dumps(shop)
    assert len(text) < 300
    assert rows_of(pickle.loads(text).recommend("u0")) == rows_of(shop.recommend("u0"))
    with pytest.raises(BundleError):
        bascule.Recommender.load(shop.path, None, "0" * 12)
    shutil.move(tmp_path / "runs" / "shop", tmp_path / "elsewhere")
    with pytest.raises(BundleError):
        pickle.loads(text)


def test_another_process_gets_a_recommender_by_its_pickle(shop):
    code = "import pickle, sys; print(len(pickle.load(sys.stdin.buffer).recommend('u0', k=3)[0]))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, input=pickle.dumps(shop), capture_output=True, check=True
    )
    assert done.stdout.strip() == b"3"


def test_a_copy_of_a_recommender_answers_alike(shop):
    assert rows_of(copy.deepcopy({"one": shop})["one"].recommend("u0")) == rows_of(
        shop.recommend("u0")
    )
    assert rows_of(copy.copy(shop).recommend("u0")) == rows_of(shop.recommend("u0"))


def test_nothing_is_said_of_no_item(shop):
    answers = shop.explain(["u0", "u1"], [])
    assert ([*answers], len(answers.to_pandas())) == ([[], []], 0)


def test_a_table_has_a_row_per_item_with_its_name_and_says_who_is_unknown(shop):
    answers = shop.recommend(["u0", "nobody", ["i107"]], k=3, again="any")
    frame = answers.to_pandas()
    assert frame["request"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert frame["rank"].tolist() == [1, 2, 3] * 3
    assert frame["name"].notna().all()
    assert [row["item_id"] for row in answers[-1]] == frame["item_id"].tolist()[6:]
    (note,) = answers.notes
    assert "nobody" in note
    assert "nobody" in repr(answers)
    assert len(repr(shop.recommend(["u0"] * 50)).splitlines()) < 15


def test_similar_items_have_the_cosines_of_the_tower_and_obey_filters(shop):
    vectors = shop.encode_items(shop.served.catalogue.item_ids.ids.tolist())[
        :, : shop.served.taste_dim
    ]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = shop.served.catalogue.item_ids.ids.tolist()
    found = shop.similar_items([ids[4], ids[9]], k=N).to_pandas()
    for place, row in enumerate((4, 9)):
        cosines = dict(zip(ids, unit @ unit[row], strict=True))
        mine = found[found["request"] == place]
        assert set(mine["item_id"]) == {*ids} - {ids[row]}
        np.testing.assert_allclose(
            mine["cosine"], [cosines[item] for item in mine["item_id"]], atol=1e-6
        )
        assert mine["cosine"].is_monotonic_decreasing
    dairy = shop.similar_items(ids[4], k=N, filters={"where": "department = 'dairy'"}).to_pandas()[
        "item_id"
    ]
    assert dairy.tolist() == [item for item in found["item_id"][: N - 1] if item in set(dairy)]
    assert 0 < len(dairy) < N - 1
    described = {"department": "dairy", "price": 1.0, "brand": "x"}
    (vector,) = shop.served.encode_items([described])
    assert np.array_equal(shop.encode_items([ids[0], described])[1], vector)
    assert len(shop.similar_items(described, k=2)[0]) == 2


def test_what_is_due_is_a_table_of_rhythms_with_times_and_says_who_has_none(shop):
    asked = ["u0", "u1", "nobody"]
    answers, lists = (
        shop.due(asked, k=4),
        find_due(shop.served, [{"user_id": user} for user in asked], 4),
    )
    assert [[row["item_id"] for row in one] for one in answers] == [
        [it.item_id for it in one.items] for one in lists
    ]
    frame, items = answers.to_pandas(), [item for one in lists for item in one.items]
    assert len(items) > 0
    assert [time.timestamp() for time in frame["last"]] == [one.last for one in items]
    named = frame["due"].dropna()
    assert [time.timestamp() for time in named] == [one.due for one in items if one.due]
    assert frame["name"].tolist() == [one.name for one in items]
    assert len(answers.notes) == 1
    nobody = shop.due("nobody")
    assert (len(nobody), nobody[0]) == (1, [])
    assert nobody.table.schema == answers.table.schema


def test_similar_users_are_those_with_the_nearest_vectors_but_not_oneself(shop):
    users = shop.served.profiles.user_ids.tolist()
    vectors = shop.encode_users(users)[:, : shop.served.taste_dim]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = sorted(
        (user for user in users if user != "u1"),
        key=lambda user: -unit[users.index(user)] @ unit[1],
    )
    assert [row["user_id"] for row in shop.similar_users("u1", k=99)[0]] == expected
    assert len(shop.similar_users([["i107"]], k=99)[0]) == len(users)
    alone = bascule.Recommender(bascule.recommender.Served(shop.served.bundle), shop.path)
    with pytest.raises(SchemaError):
        alone.similar_users("u1")


def test_scores_and_reasons_are_those_of_the_list(shop):
    listed = shop.recommend("u1", k=5, repeats="allow")[0]
    scores = shop.score("u1", [row["item_id"] for row in listed])
    np.testing.assert_allclose(scores, [row["score"] for row in listed], rtol=1e-5)
    reasons = shop.explain("u1", [row["item_id"] for row in listed]).to_pandas()
    assert len(reasons) > 0
    assert set(reasons["item_id"]) <= {row["item_id"] for row in listed}
    assert (reasons.loc[reasons["kind"] != "popular", "effect"] > 0).all()
    of_two = shop.explain(["u0", "u1"], k=9).to_pandas()
    assert set(of_two["request"]) == {0, 1}


def test_dials_change_a_list_and_at_0_leave_it(shop):
    plain = rows_of(shop.recommend("u1", k=8))
    assert rows_of(shop.recommend("u1", 8, 0.0, 0.0, 0.0)) == plain
    assert rows_of(shop.recommend("u1", k=8, diversity=1.0)) != plain


def test_segments_are_those_of_the_bundle_and_a_user_is_in_one(shop):
    assert (len(shop.segments().table), len(shop.segments(["u0", "u1"]))) == (
        0,
        2,
    )  # too few users
    directions = np.eye(2, 10) - 0.5
    few = [Segment(place + 1, 20 + place, 0.5, f"people {place}", ()) for place in range(2)]
    segments = Segments(40, {}, (0.0,) * 10, tuple(map(tuple, directions.tolist())), tuple(few))
    bundle = replace(shop.served.bundle, segments=segments)
    grouped = bascule.Recommender(
        bascule.recommender.Served(bundle, shop.served.profiles), shop.path
    )
    assert grouped.segments().to_pandas()["text"].tolist() == ["people 0", "people 1"]
    of_users = grouped.segments(["u0", "u1"]).to_pandas()
    assert of_users["request"].tolist() == [0, 1]
    nearest = [int(row) + 1 for row in segments.of(grouped.encode_users(["u0", "u1"]))]
    assert of_users["segment"].tolist() == nearest


def test_what_is_saved_answers_the_same_and_replaces_nothing(shop, tmp_path):
    saved = bascule.load(shop.save(tmp_path / "kept" / "shop"))
    assert rows_of(saved.recommend(["u0", "u1"])) == rows_of(shop.recommend(["u0", "u1"]))
    assert len(saved.served.profiles) == len(shop.served.profiles)
    with pytest.raises(SchemaError):
        shop.save(tmp_path / "kept" / "shop")
    alone = bascule.load(shutil.copytree(shop.path, tmp_path / "alone" / "bundle"))
    assert len(alone.served.profiles) == 0
    assert not (alone.save(tmp_path / "kept" / "alone") / "profiles").exists()
    with pytest.raises(BundleError):
        bascule.load(tmp_path / "kept")


def test_a_fit_leaves_a_run_where_it_is_asked_to_and_prints_nothing_when_quiet(
    tmp_path, monkeypatch, capsys
):
    trace_exports(monkeypatch)
    events, _, items = make_tables(ORDERED)
    events = events.rename(columns={"user_id": "customer", "item_id": "sku"})
    items = items.rename(columns={"item_id": "sku"})
    kinds = {"item": {"category": "categorical"}, "context": {"hour": "hour_of_day"}}
    options = {
        "columns": {"user_id": "customer", "item_id": "sku"},
        "epochs": 1,
        "dim": 8,
        "baselines": [],
    }
    with one_thread():
        made = bascule.fit(events, None, items, kinds, out=tmp_path / "run", quiet=True, **options)
    assert capsys.readouterr().out == ""
    assert made.served.bundle.schema.item_features[0].name == "category"
    assert made.metrics["data"]
    assert rows_of(bascule.load(tmp_path / "run").recommend("u001")) == rows_of(
        made.recommend("u001")
    )
    with pytest.raises(SchemaError, match="overwrite"):
        bascule.fit(events, None, items, kinds, out=tmp_path / "run", quiet=True, **options)


def test_a_fit_into_no_folder_is_kept_by_save_alone(tmp_path, monkeypatch, capsys):
    trace_exports(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    events, _, items = make_tables(ORDERED)
    with one_thread():
        recommender = bascule.fit(
            events.to_dict("list"), items=items.to_dict("records"), epochs=1, dim=8, baselines=[]
        )
    printed = capsys.readouterr().out
    assert str(tmp_path) not in printed.replace("\n", "")
    calls = printed.partition("Try next:\n")[2].split("\n")[:-1]
    assert len(calls) == 3
    done = [eval(call, {"recommender": recommender}) for call in calls]
    assert [len(answers[0]) for answers in done[:2]] == [5, 5]
    with pytest.raises(SchemaError, match="save"):
        pickle.dumps(recommender)
    alike = copy.deepcopy(recommender)
    saved = pickle.loads(pickle.dumps(bascule.load(done[2])))
    del recommender, done
    gc.collect()
    assert rows_of(alike.recommend("u001")) == rows_of(saved.recommend("u001"))
    assert [path.name for path in tmp_path.glob("bascule-*")] != []
    del alike
    gc.collect()
    assert [*tmp_path.glob("bascule-*")] == []


def test_every_option_of_a_fit_stands_in_its_signature_with_type_and_meaning():
    parameters = inspect.signature(bascule.fit).parameters
    assert len(parameters) > 20
    named = {*parameters} - {"unknown"}
    arguments = inspect.getdoc(bascule.fit).partition("Args:")[2].partition("Returns:")[0]
    assert {name for name in named if f"\n    {name}: " not in arguments} == set()
    typed = [parameters[name].annotation for name in named]
    assert not {"Any", inspect.Parameter.empty} & {*typed}


@pytest.mark.parametrize(
    "arguments",
    [
        {"epoch": 3},
        {"columns": ["customer"]},
        {"events": None},
        {"events": [5]},
        {"repeats": "maybe"},
        {"split": "half"},
        {"items": "items.csv"},
        {"events": "nowhere.csv"},
        {"features": {"item": {"category": "kategorical"}}},
        {"columns": {"user": "user_id"}},
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_leaves_no_folder(tmp_path, monkeypatch, arguments):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    events, _, _ = make_tables(ORDERED)
    with pytest.raises(SchemaError) as error:
        bascule.fit(**{"events": events, "quiet": True, **arguments})
    assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_serving_in_process_needs_has_one_door():
    assert bascule.StateStore is StateStore
    assert bascule.Request is Request
    assert bascule.Recommender is bascule.recommender.Recommender
    assert len(bascule._MODULE_OF_NAME) == 8
    assert {name for name in bascule._MODULE_OF_NAME if not hasattr(bascule, name)} == set()
    with pytest.raises(AttributeError, match="Recommenders"):
        _ = bascule.Recommenders


def test_nothing_of_training_is_imported_before_it_is_needed(bundle_paths):
    code = (
        "import sys, bascule\nassert not {'numpy', 'pyarrow'} & set(sys.modules)\n"
        f"bascule.load({str(bundle_paths['shop'].parent)!r}).recommend('u1')\n"
        "assert not {'torch', 'pytorch_lightning', 'jsonargparse'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


EVENTS = pd.DataFrame({"user_id": np.arange(400) % 40, "item_id": np.arange(400) // 40})


def prepare(monkeypatch, events, **options):
    """Return the typed tables of a fit, which then stops."""
    taken = []

    def stop(config, frames, beside):
        taken.append(pipeline.tables.read(config, frames, beside)[0])
        raise SchemaError("stopped")

    monkeypatch.setattr("pipeline.run.prepare", stop)
    with pytest.raises(SchemaError, match="stopped"):
        bascule.fit(events, quiet=True, **options)
    return taken[0].interactions


def test_events_are_read_in_each_form(monkeypatch):
    polars = pytest.importorskip("polars")
    users, items = EVENTS["user_id"].to_numpy(), EVENTS["item_id"].to_numpy()
    expected = sorted(zip(users.tolist(), items.tolist(), strict=True))
    keys = [uuid.UUID(int=user) for user in range(40)]
    for form in (
        EVENTS.to_numpy(),
        EVENTS.to_numpy(float),
        pd.DataFrame(EVENTS.to_numpy()),
        list(zip(users.tolist(), items.tolist(), strict=True)),
        polars.from_pandas(EVENTS).lazy(),
    ):
        pairs = prepare(monkeypatch, form)[["user_id", "item_id"]]
        assert sorted(map(tuple, pairs.to_numpy().tolist())) == expected
    named = EVENTS.assign(user_id=[keys[user] for user in users])
    assert set(prepare(monkeypatch, named)["user_id"]) == {*map(str, keys)}


def test_a_sparse_matrix_has_a_row_per_user_and_weights(monkeypatch):
    weights = np.random.default_rng(0).integers(1, 9, size=(7, 11)) * (np.arange(11) % 3 > 0)
    for form in (sparse.csr_array(weights), sparse.coo_matrix(weights)):
        read = prepare(monkeypatch, form)
        got = {(row.user_id, row.item_id): row.weight for row in read.itertuples()}
        assert got == {(user, item): weights[user, item] for user, item in np.argwhere(weights)}


def test_a_table_may_bring_the_options_of_a_configuration(monkeypatch, tmp_path):
    days = [f"{day % 28 + 1:02d}.03.2024" for day in range(400)]
    frame = EVENTS.assign(datetime=days)
    expected = sorted(day.timestamp() for day in pd.to_datetime(days, format="%d.%m.%Y"))
    path = tmp_path / "orders.txt"
    frame.rename(columns={"item_id": "Größe"}).to_csv(
        path, sep=";", index=False, encoding="latin-1"
    )
    text = {"path": path, "encoding": "latin-1", "delimiter": ";", "names": [*frame]}
    query = f"SELECT * FROM read_csv('{path}', encoding='latin-1')"
    formats = {"time_formats": ["%d.%m.%Y"]}
    for form in (
        {"table": frame, **formats},
        {"table": frame.to_numpy(), "names": [*frame], **formats},
        {**text, **formats},
        {"query": query, "columns": {"item_id": "Größe"}, **formats},
    ):
        read = prepare(monkeypatch, form)
        assert sorted(read["datetime"]) == expected
        assert sorted(read["item_id"]) == sorted(EVENTS["item_id"])


@pytest.mark.parametrize(
    ("arguments", "says", "not_said"),
    [
        ({"encoding": "latin-1"}, "'path'", "return"),
        ({"foo": 1}, "baselines", "return"),
        ({"factors": 8}, "dim", "return"),
        ({"events": {"table": EVENTS, "encodng": "utf-8"}}, "'encoding'", "data."),
        ({"events": {"table": EVENTS, "seperator": ";"}}, "'delimiter'", "data."),
        ({"events": {"table": EVENTS, "encoding": "utf-16"}}, "encoding", "data."),
        ({"events": {"table": EVENTS, "path": "x.csv"}}, "one", "data."),
        ({"events": EVENTS.assign(third=1).to_numpy()}, "names", "data."),
        ({"events": EVENTS.assign(datetime="31.03.2024")}, '"time_formats": ["%d', "data."),
        ({"history_length": 1}, "history_length is 1", "data."),
        ({"epochs": -1}, "epochs is -1", "model."),
        ({"resume": True}, "out", "--"),
    ],
)
def test_a_message_names_the_options_of_python(arguments, says, not_said):
    with pytest.raises(SchemaError) as error:
        bascule.fit(**{"events": EVENTS, "quiet": True, **arguments})
    message = str(error.value)
    assert says in message
    assert not_said not in message
    assert len(message.splitlines()) == 1


def test_an_interrupted_fit_is_resumed_and_one_in_its_way_is_refused(tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints" / "select"
    checkpoints.mkdir(parents=True)
    (checkpoints / "last.ckpt").touch()
    with pytest.raises(SchemaError, match="resume=True") as error:
        bascule.fit(EVENTS, out=tmp_path / "run", quiet=True)
    assert "--" not in str(error.value)


def test_no_folder_can_be_made_below_a_file(shop, tmp_path):
    file = tmp_path / "file"
    file.touch()
    for call in (
        lambda: shop.save(file),
        lambda: shop.save(file / "below"),
        lambda: bascule.fit(EVENTS, out="/proc/none/run", quiet=True),
    ):
        with pytest.raises(SchemaError) as error:
            call()
        assert len(str(error.value).splitlines()) == 1


def test_what_is_known_is_listed(shop):
    assert shop.item_ids.tolist() == shop.served.catalogue.item_ids.ids.tolist()
    assert shop.user_ids.tolist() == [f"u{user}" for user in range(5)]
    shop.item_ids[:] = "changed"
    assert "changed" not in shop.item_ids


@pytest.mark.parametrize(
    ("name", "ours"), [("N", "k"), ("filter_viewed", "repeats"), ("filter", "filters")]
)
def test_options_of_others_are_answered_by_ours(shop, name, ours):
    with pytest.raises(SchemaError, match=rf"\b{ours}\b"):
        shop.recommend("u0", **{name: 5})
    with pytest.raises(SchemaError, match=name):
        shop.similar_items("i107", **{name: 5})


def test_answers_become_a_frame_of_their_rows_or_are_refused(shop):
    polars = pytest.importorskip("polars")
    answers = shop.recommend(["u0", "u1"], k=3)
    assert polars.DataFrame(answers).rows() == answers.to_polars().rows()
    assert pa.table(answers).equals(answers.to_arrow())
    with pytest.raises(SchemaError, match="to_pandas"):
        pd.DataFrame(answers)


def test_users_are_asked_by_whole_floats_and_uuids_where_ids_are_such():
    key = uuid.UUID(int=7)
    assert to_ids([1.0, np.float64(2), 3, 1.5], "integer") == [1, 2, 3, 1.5]
    assert to_ids([key, "a", 1.0], "string") == [str(key), "a", 1.0]
