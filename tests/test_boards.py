"""The harness of the boards: preparation of raw files, the scorer, rows by version, and what is resumed."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from serve.bundle import Bundle
from serve.errors import SchemaError
from serve.recommender import Recommender
from tests.benchmarks.boards import peers, runs, version
from tests.benchmarks.boards.declared import BOARDS, QUOTED
from tests.benchmarks.boards.page import (
    BEGIN,
    END,
    draw,
    measure_bar,
    read_rows,
    render,
    show_board,
    write_page,
)
from tests.benchmarks.boards.protocols import GENRES, PAIR, PROTOCOLS, Parts, prepare
from tests.benchmarks.boards.scores import check_lists, number_requests, score_users, summarise
from tests.benchmarks.measured import profile
from tests.models.tiny_towers import one_thread
from tests.pipeline.small_runs import ORDERED, make_run, trace_exports

MINUTE = 60


# ---- preparation


def write_movielens(raw):
    """Three users; the last two events of user 1 have one time, and the file has the later first."""
    (raw / "u.data").write_text(
        "1\t10\t3\t300\n2\t10\t4\t100\n1\t12\t5\t300\n1\t11\t2\t100\n3\t12\t1\t50\n"
    )
    (raw / "u.user").write_text("1|24|M|writer|85711\n2|53|F|other|94043\n3|23|M|lawyer|T8H1N\n")
    flags = [["0"] * len(GENRES) for _ in range(4)]
    for film, genre in ((0, "Action"), (0, "War"), (1, "Comedy")):
        flags[film][GENRES.index(genre)] = "1"
    films = [
        f"{10 + film}|Café {film}|01-Jan-199{film}||u|{'|'.join(flags[film])}" for film in range(4)
    ]
    (raw / "u.item").write_text("\n".join(films), encoding="latin-1")


def write_beauty(raw):
    raw.joinpath("Beauty.txt").write_text("1 7 8 9\n2 8 7\n")
    rows = [
        "user,position,item,timestamp",
        "1,2,9,30",
        "1,0,7,10",
        "1,1,8,30",
        "2,0,8,5",
        "2,1,7,6",
    ]
    raw.joinpath("beauty_with_time.csv").write_text("\n".join(rows))
    raw.joinpath("Beauty_item2attributes.json").write_text(json.dumps({"7": [1, 2], "9": [3]}))


def write_groceries(raw):
    """Milk (1) has 20 lines before December, tea (2) one; household 6 comes in December only."""
    moments = ["2017-03-01 10:00:00"] * 21 + ["2017-12-02 09:00:00"] * 4
    lines = pd.DataFrame(
        {
            "household_id": [5] * 21 + [5, 5, 6, 5],
            "product_id": [1] * 20 + [2] + [1, 1, 1, 2],
            "quantity": 1,
            "basket_id": range(25),
            "store_id": 3,
            "transaction_timestamp": pd.to_datetime(moments),
        }
    )
    lines.to_parquet(raw / "transactions.parquet")
    pd.DataFrame({"household_id": [5], "age": ["65+"]}).to_parquet(raw / "demographics.parquet")
    products = pd.DataFrame({"product_id": [1, 2, 3], "department": ["A", "B", "C"]})
    products.to_parquet(raw / "products.parquet")


def write_apps(raw):
    """Five apps of each of two users, the first of them twice."""
    names = "user\titem\tcnt\tdaytime\tweekday\tisweekend\thomework\tcost\tweather\tcountry\tcity"
    used = [(user, item) for user in (0, 1) for item in (0, 0, 1, 2, 3, 4)]
    rows = [
        f"{user}\t{item}\t1\tnoon\tmonday\tno\thome\tfree\tsunny\tSpain\t0" for user, item in used
    ]
    (raw / "frappe.csv").write_text("\n".join([names, *rows]))
    apps = [f"{item}\tTools" for item in range(6)]
    (raw / "meta.csv").write_text("\n".join(["item\tcategory", *apps]))


def write_order(raw):
    users = np.repeat(np.arange(10), 4)
    rows = pd.DataFrame(
        {"user_id": users, "item_id": np.arange(40) % 7, "position": np.arange(40) % 4}
    )
    rows.iloc[::-1].to_parquet(raw / "interactions.parquet")


def write_pairs(raw):
    pd.DataFrame({"user_id": [1, 1, 2], "item_id": [5, 6, 5]}).to_parquet(raw / "train.parquet")
    pd.DataFrame({"user_id": [2], "item_id": [6]}).to_parquet(raw / "test.parquet")


def write_log(raw):
    rows = pd.DataFrame({"user_id": [1, 2], "item_id": [5, 6], "event": ["view", "addtocart"]})
    rows.to_parquet(raw / "train.parquet")
    pd.DataFrame({"user_id": [1], "item_id": [6]}).to_csv(raw / "holdout.csv", index=False)


WRITERS = {
    "movielens-100k": write_movielens,
    "amazon-beauty": write_beauty,
    "complete-journey": write_groceries,
    "frappe": write_apps,
    "movielens-1m": write_order,
    "gowalla": write_pairs,
    "lastfm": write_pairs,
    "retailrocket": write_log,
}


@pytest.fixture
def prepared(tmp_path):
    """Prepare a protocol from tiny raw files; return its folder and what is told of it."""

    def make(name):
        protocol = PROTOCOLS[name]
        raw = tmp_path / protocol.dataset
        raw.mkdir()
        WRITERS[protocol.dataset](raw)
        folder = tmp_path / "tables" / name
        return folder, prepare(protocol, tmp_path, folder)

    return make


def read_pairs(folder, name):
    return pd.read_csv(folder / f"{name}.csv")[PAIR].to_numpy().tolist()


HELD_OUT = {
    "movielens-100k": [[1, 12]],  # of two events of one time the later in the file
    "amazon-beauty": [[1, 9], [2, 7]],
    "complete-journey": [[5, 1]],  # once; tea is rare, household 6 unknown
    "gowalla": [[2, 6]],
    "lastfm": [[2, 6]],
    "retailrocket": [[1, 6]],
}


@pytest.mark.parametrize("name", HELD_OUT)
def test_the_holdout_is_that_of_the_protocol(name, prepared):
    folder, told = prepared(name)
    assert read_pairs(folder, "holdout") == HELD_OUT[name]
    assert told["counts"]["targets"] == len(HELD_OUT[name])
    held_out = {tuple(pair) for pair in HELD_OUT[name]}
    train = {tuple(pair) for pair in read_pairs(folder, "train")}
    assert bool(train & held_out) == (name == "complete-journey")


def test_genres_of_a_film_are_one_column_and_its_year_another(prepared):
    folder, _ = prepared("movielens-100k")
    films = pd.read_csv(folder / "items.csv", keep_default_na=False)
    assert films["genres"].tolist() == ["Action|War", "Comedy", ""]
    assert films["title"].tolist() == ["Café 0", "Café 1", "Café 2"]
    assert films["year"].tolist() == [1990, 1991, 1992]


def test_products_without_lines_are_not_in_the_catalogue(prepared):
    folder, _ = prepared("complete-journey")
    assert pd.read_csv(folder / "items.csv")["item_id"].tolist() == [1]
    assert pd.read_csv(folder / "users.csv")["age"].tolist() == ["65+"]


def test_a_held_out_app_leaves_train_with_all_its_rows(prepared):
    folder, _ = prepared("frappe")
    train, holdout = read_pairs(folder, "train"), read_pairs(folder, "holdout")
    assert Counter(user for user, _ in holdout) == {0: 1, 1: 1}  # a fifth of five
    assert not any(pair in train for pair in holdout)
    doubled = sum(item == 0 for _, item in holdout)
    assert len(train) == 12 - len(holdout) - doubled
    assert pd.read_csv(folder / "holdout.csv")["country"].tolist() == ["Spain", "Spain"]


def test_hidden_people_never_train_and_give_half_of_their_items(prepared):
    folder, _ = prepared("movielens-1m-unseen")
    trained = {user for user, _ in read_pairs(folder, "interactions")}
    given, asked = read_pairs(folder, "train"), read_pairs(folder, "holdout")
    hidden = {user for user, _ in given}
    assert (len(trained), len(hidden), trained & hidden) == (8, 2, set())
    assert (
        Counter(user for user, _ in given)
        == Counter(user for user, _ in asked)
        == dict.fromkeys(hidden, 2)
    )


def test_a_twin_by_time_holds_out_what_known_people_did_later(tmp_path):
    """Of MovieLens' own date."""
    at = int(pd.Timestamp("1998-02-01").timestamp())
    raw = tmp_path / "movielens-100k"
    raw.mkdir()
    write_movielens(raw)
    events = [
        (1, 10, at - MINUTE),
        (1, 11, at),
        (2, 10, at + MINUTE),
        (3, 11, at - MINUTE),
        (3, 13, at),
    ]
    lines = [f"{user}\t{item}\t3\t{time}" for user, item, time in events]
    (raw / "u.data").write_text("\n".join(lines))
    prepare(PROTOCOLS["movielens-100k-time"], tmp_path, tmp_path / "tables")
    assert read_pairs(tmp_path / "tables", "train") == [[1, 10], [3, 11]]
    assert read_pairs(tmp_path / "tables", "holdout") == [[1, 11]]  # 2 is unknown, and film 13


def test_files_of_two_downloads_and_absent_ones_are_refused(prepared, tmp_path):
    prepared("amazon-beauty")
    (tmp_path / "amazon-beauty" / "Beauty.txt").write_text("1 7 9 8\n2 8 7\n")
    with pytest.raises(SystemExit, match="two downloads"):
        prepare(PROTOCOLS["amazon-beauty"], tmp_path, tmp_path / "tables" / "amazon-beauty")
    with pytest.raises(SystemExit, match=r"frappe\.csv, meta\.csv"):
        prepare(PROTOCOLS["frappe"], tmp_path, tmp_path / "tables" / "frappe")


def test_tables_are_made_again_where_the_raw_file_or_the_end_is_another(prepared, tmp_path):
    folder, told = prepared("gowalla")
    protocol = PROTOCOLS["gowalla"]
    (folder / "holdout.csv").unlink()
    assert prepare(protocol, tmp_path, folder) == told
    assert not (folder / "holdout.csv").exists()  # what is there is believed
    (folder / "protocol.json").unlink()  # as after a kill
    assert prepare(protocol, tmp_path, folder) == told
    assert read_pairs(folder, "holdout") == [[2, 6]]
    pd.DataFrame({"user_id": [1], "item_id": [9]}).to_parquet(tmp_path / "gowalla" / "test.parquet")
    assert prepare(protocol, tmp_path, folder)["raw"] != told["raw"]
    assert read_pairs(folder, "holdout") == [[1, 9]]


# ---- the scorer


def score_naively(ranked, wanted, metric):
    kind, cut = metric.split("@")
    hits = [place for place, item in enumerate(ranked[: int(cut)], 1) if item in wanted]
    if kind == "HR":
        return float(bool(hits))
    if kind == "MRR":
        return 1 / hits[0] if hits else 0.0
    if kind == "Recall":
        return len(hits) / len(wanted)
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(int(cut), len(wanted)) + 1))
    return sum(1 / math.log2(place + 1) for place in hits) / ideal


METRICS = ["NDCG@3", "HR@2", "Recall@5", "MRR@4"]


@pytest.mark.parametrize("is_by_row", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_plain_loops(seed, is_by_row):
    """A user without a list scores 0; one target a request where each row is one."""
    rng = np.random.default_rng(seed)
    wanted = {user: rng.permutation(12)[: rng.integers(1, 7)].tolist() for user in range(6)}
    lists = {user: rng.permutation(12)[: rng.integers(3, 12)].tolist() for user in range(5)}
    holdout = pd.DataFrame([(user, item) for user in wanted for item in wanted[user]], columns=PAIR)
    targets = number_requests(holdout, is_by_row)
    rows = [(user, item, rank) for user in lists for rank, item in enumerate(lists[user], 1)]
    frame = pd.DataFrame(rows, columns=[*PAIR, "rank"]).sample(frac=1, random_state=seed)
    asked = frame.merge(targets[["request", "user_id"]].drop_duplicates(), on="user_id")
    got = score_users(asked, targets, METRICS)
    assert got.index.tolist() == list(wanted)
    for user, items in wanted.items():
        requests = [[item] for item in items] if is_by_row else [items]
        for metric in METRICS:
            scores = [score_naively(lists.get(user, []), request, metric) for request in requests]
            assert got.loc[user, metric] == pytest.approx(np.mean(scores))
    errors = summarise("novel", got)["novel MRR@4"]
    assert errors["value"] == pytest.approx(got["MRR@4"].mean())
    assert errors["error"] == pytest.approx(got["MRR@4"].std() / math.sqrt(6))


UNFIT = {
    "twice": [(0, 1, 5, 1), (0, 1, 5, 2)],
    "1, 2, 3": [(0, 1, 5, 1), (0, 1, 6, 3)],
    "has in train": [(0, 1, 7, 1)],
}


@pytest.mark.parametrize("reason", UNFIT)
def test_unfit_lists_are_refused(reason):
    lists = pd.DataFrame(UNFIT[reason], columns=["request", *PAIR, "rank"])
    train = pd.DataFrame([(1, 7)], columns=PAIR)
    with pytest.raises(ValueError, match=reason):
        check_lists(lists, train, is_novel=True)
    if reason == "has in train":
        check_lists(lists, train, is_novel=False)


def test_ease_of_strangers_solves_the_regression_of_each_item():
    rng = np.random.default_rng(0)
    cells = np.argwhere(rng.random((30, 8)) < 0.4)
    rows = pd.DataFrame(cells, columns=PAIR)
    given = pd.DataFrame([(90, 1), (90, 4)], columns=PAIR)
    holdout = pd.DataFrame([(90, 6)], columns=PAIR)
    (weigh,) = peers.fit_ease(Parts(rows, given, holdout), [3.0])
    matrix = np.zeros((30, 8))
    matrix[cells[:, 0], cells[:, 1]] = 1
    history = np.zeros((1, 8))
    history[0, [1, 4]] = 1
    expected = []
    for item in range(8):
        others = np.delete(matrix, item, axis=1)
        weights = np.linalg.solve(others.T @ others + 3 * np.eye(7), others.T @ matrix[:, item])
        expected.append(np.delete(history[0], item) @ weights)
    assert weigh(history)[0] == pytest.approx(expected)
    left = [item for item in np.argsort(np.negative(expected)) if item not in (1, 4)]
    judged = peers.judge(weigh, Parts(rows, given, holdout), ["MRR@8"], is_by_row=False)
    assert judged.loc[90, "MRR@8"] == pytest.approx(1 / (left.index(6) + 1))


# ---- rows and their version

BOARD = next(board for board in BOARDS if board.name == "movielens-100k")
FIGURES = {figure: {"value": 0.125, "error": 0.01, "users": 943} for figure in BOARD.figures}


def make_row(board=BOARD, seed=0):
    told = {
        "name": board.protocol,
        "held_out": "x",
        "excluded": "y",
        "counts": {"users": 3},
        "raw": {"f": "0" * 64},
    }
    figures = dict(zip(board.figures, FIGURES.values(), strict=True))
    return {
        "board": board.name,
        "seed": seed,
        "options": list(board.options),
        "config": board.config,
        "protocol": told,
        "figures": figures,
        "by_the_run": figures,
        "others": {"ease": {figure: of | {"value": 0.0625} for figure, of in figures.items()}},
        "lead": {"over": "ease", "value": 0.0625, "low": 0.05, "high": 0.07},
        "seconds": {"training_cpu": 7.0, "training_again_cpu": 4.0},
    }


def write_row(folder, stamp, **changes):
    row = make_row() | {"version": stamp, "commit": "abc", "quick": False} | changes
    (folder / f"{row['board']}-{row['seed']}.json").write_text(json.dumps(row))


def test_a_row_of_another_version_or_of_other_options_is_left_out_and_named_as_not_run(tmp_path):
    for change in (
        {},
        {"version": "old"},
        {"options": ["--data.split.kind", "none"]},
        {"config": None},
    ):
        write_row(tmp_path, "new", **change)
        text = render(read_rows(tmp_path, "new"), "new")
        not_run = next(line for line in text.splitlines() if line.startswith("Not run"))
        is_shown = not change
        assert (f"| {BOARD.title} |" in text) == (".1250" in text) == is_shown
        assert ("movielens-100k," in not_run) == (not is_shown)


def test_a_board_shows_the_spread_of_its_seeds_and_the_best_other_model(tmp_path):
    write_row(tmp_path, "new")
    later = {figure: of | {"value": 0.135} for figure, of in FIGURES.items()}
    write_row(tmp_path, "new", seed=1, figures=later, others={}, lead=None)
    text = render(read_rows(tmp_path, "new"), "new")
    line = next(line for line in text.splitlines() if line.startswith(f"| {BOARD.title} |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    sasrec = QUOTED["movielens-100k"][0].figures
    assert cells[2:5] == [
        "0, 1",
        ".1300 ± .0071, .1300 ± .0071",
        f"SASRec (quoted) {', '.join(f'{value:.4f}'[1:] for value in sasrec.values())}",
    ]
    assert cells[6] == "11"


def test_the_best_other_model_is_the_mean_of_its_seeds_and_the_lead_names_its_own(tmp_path):
    board = replace(BOARD, name="without quoted figures")
    rows = [make_row(board, seed) for seed in (0, 1, 2)]
    rows[0] |= {"others": {}, "lead": None}
    for figure, of in rows[2]["others"]["ease"].items():
        rows[2]["others"]["ease"][figure] = of | {"value": 0.1625}
    assert " | ease .1125, .1125 | " in show_board(board, rows)
    assert "(+0.0500, +0.0700), ease, seed 1 |" in show_board(board, rows)
    assert "(+0.0500, +0.0700), ease |" in show_board(board, rows[1:2])


def test_figures_of_others_stand_in_the_order_of_the_header():
    row = make_row()
    values = dict(zip(BOARD.figures, (0.25, 0.75), strict=True))
    others = {figure: FIGURES[figure] | {"value": values[figure]} for figure in sorted(values)}
    assert list(others) != list(BOARD.figures)
    assert " | ease .2500, .7500 | " in show_board(BOARD, [row | {"others": {"ease": others}}])


def test_a_run_that_measured_another_figure_of_itself_is_named(tmp_path):
    for value, is_named in ((0.1251, False), (0.13, True)):
        write_row(tmp_path, "new", by_the_run={BOARD.figures[0]: {"value": value}})
        text = render(read_rows(tmp_path, "new"), "new")
        assert ("movielens-100k (.1300, seed 0)" in text) == is_named


def test_error_bars_are_of_users_and_of_seeds(tmp_path):
    rows = [make_row(seed=0), make_row(seed=1)]
    rows[1]["figures"] = {figure: of | {"value": 0.135} for figure, of in FIGURES.items()}
    value, margin = measure_bar(BOARD, rows)
    assert value == pytest.approx(0.13)
    assert margin == pytest.approx(1.96 * math.hypot(0.01, 0.01 / math.sqrt(2)))
    assert measure_bar(BOARD, rows[:1]) == pytest.approx((0.125, 0.0196))


@pytest.mark.slow
def test_the_picture_is_drawn(tmp_path):
    rows = [make_row() | {"quick": False}]
    draw(rows, tmp_path / "boards.png")
    assert (tmp_path / "boards.png").read_bytes().startswith(b"\x89PNG")


def test_only_what_stands_between_the_marks_of_the_page_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(page, "new")
    assert page.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"


def test_the_page_is_made_from_the_rows_that_lie_beside_it():
    page = version.ROOT / "docs" / "boards.md"
    block = page.read_text().split(BEGIN)[1].split(END)[0].strip()
    stamp = block.split("`")[1]
    assert block == render(read_rows(version.ROOT / "docs" / "boards", stamp), stamp).strip()


@pytest.fixture
def sources(tmp_path):
    """A house with one model and one page."""
    for name, text in {
        "models/net.py": '"""What it is."""\n\nx = 1  # one\n',
        "configs/a.yaml": "seed: 0\n",
        "train.py": "import models\n",
        "docs/boards.md": "page",
        "tests/test_net.py": "assert True",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


CHANGED = {
    "models/net.py": "x = 2\n",
    "configs/a.yaml": "seed: 1\n",
    "train.py": "import serve\n",
    "models/new.py": "y = 3\n",
    "tests/benchmarks/boards/scores.py": "best = 1\n",
}
UNCHANGED = {
    "models/net.py": '"""Another sentence\nof two lines."""\nx = 1\n',
    "docs/boards.md": "another page",
    "docs/boards/a.json": "{}",
    "tests/test_net.py": "assert 1",
}


@pytest.mark.parametrize(
    ("name", "text", "is_another"),
    [(*item, True) for item in CHANGED.items()] + [(*item, False) for item in UNCHANGED.items()],
)
def test_the_version_is_of_what_decides_figures(name, text, is_another, sources):
    before = version.hash_sources(sources)
    (sources / name).parent.mkdir(parents=True, exist_ok=True)
    (sources / name).write_text(text)
    assert (version.hash_sources(sources) != before) == is_another


def test_a_text_that_is_no_docstring_and_a_sign_in_a_text_are_code():
    assert version.keep_code('x = "# no comment"  # a comment') == 'x = "# no comment"'
    assert (
        version.keep_code('def f():\n    """Say."""\n    return """a\n\nb"""')
        == 'def f():\n    return """a\nb"""'
    )


def test_a_killed_run_goes_on_with_the_row_that_it_had_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "hash_sources", lambda: "new")
    monkeypatch.setattr(runs, "tell_commit", lambda: "abc")
    ran = []

    def run(board, seed):
        ran.append((board.name, seed))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return make_row(board, seed)

    boards = [BOARD, next(board for board in BOARDS if board.name == "lastfm")]
    write_row(tmp_path, "old")  # of another version: it is run again
    with pytest.raises(KeyboardInterrupt):
        runs.run_rows(boards, [0, 1], tmp_path, run, is_quick=False)
    assert len(list(tmp_path.iterdir())) == 2
    runs.run_rows(boards, [0, 1], tmp_path, run, is_quick=False)
    expected = [(board.name, seed) for board in boards for seed in (0, 1)]
    assert ran == expected[:3] + expected[2:]
    assert {row["version"] for row in read_rows(tmp_path, "new")} == {"new"}
    runs.run_rows([replace(BOARD, options=("--x",))], [0], tmp_path, run, is_quick=False)
    assert ran[-1] == ("movielens-100k", 0)


def test_a_row_whose_sources_changed_while_it_ran_is_not_kept(tmp_path, monkeypatch):
    versions = iter(["new", "newer"])
    monkeypatch.setattr(runs, "hash_sources", lambda: next(versions))
    with pytest.raises(SystemExit, match="sources changed"):
        runs.run_rows([BOARD], [0], tmp_path, make_row, is_quick=False)
    assert list(tmp_path.iterdir()) == []


def test_every_board_has_a_protocol_a_configuration_and_a_twin_or_a_reason():
    names = {board.name for board in BOARDS}
    twins = names & {board.twin for board in BOARDS}
    assert twins == {name for name in names if name.endswith("-time")}
    for board in BOARDS:
        assert board.protocol in PROTOCOLS
        assert board.trained_as is None or board.trained_as in names
        assert board.twin or board.name in twins
        if board.config is not None:
            assert (version.ROOT / "configs" / f"{board.config}.yaml").exists()


def test_every_board_asks_for_metrics_of_a_view():
    for board in BOARDS:
        assert board.figures
        for figure in board.figures:
            view, metric = figure.split()
            assert view in {"all", "novel"}
            assert metric.split("@")[0] in {"NDCG", "HR", "Recall"}


def test_a_training_reads_the_prepared_tables_that_its_configuration_knows(tmp_path):
    (tmp_path / "items.csv").touch()
    interactions = {"interactions": tmp_path / "interactions.csv", "tables": tmp_path}
    assert runs.list_paths(BOARD, tmp_path) == interactions | {"items": tmp_path / "items.csv"}
    assert runs.list_paths(replace(BOARD, config=None), tmp_path) == interactions


def test_a_board_is_not_asked_of_what_has_seen_its_targets(tmp_path, monkeypatch):
    trace_exports(monkeypatch)
    with one_thread():
        done = make_run(tmp_path, ORDERED, refit="all")
    split = done.work.split
    parts = Parts(split.refit, split.refit, split.test)
    measured = Bundle.load(tmp_path / "measured" / "bundle")
    before = profile(done.work, measured.schema)
    board = replace(BOARD, figures=("novel NDCG@10",))
    scores = runs.ask_and_score(board, "novel", parts, Recommender(measured, before))
    expected = done.metrics["test"]["bascule"]["novel"]
    assert len(scores) == expected["users"] > 0
    assert scores["NDCG@10"].mean() == pytest.approx(expected["NDCG@10"], abs=1e-9)

    published = Recommender.load(tmp_path / "bundle")
    for bundle, profiles, part in (
        (published.bundle, before, "weights"),
        (measured, published.profiles, "profiles"),
    ):
        with pytest.raises(SchemaError, match=part):
            runs.ask_and_score(board, "novel", parts, Recommender(bundle, profiles))


@pytest.mark.slow
def test_a_board_repeats_the_figures_of_its_run(tmp_path):
    """The cheapest board, hardly trained, as a reader of the page runs it."""
    rng = np.random.default_rng(5)
    raw = tmp_path / "data" / "lastfm"
    raw.mkdir(parents=True)
    pairs = pd.DataFrame({"user_id": np.repeat(np.arange(80), 12)})
    own = rng.permuted(np.tile(np.arange(20), (80, 1)), axis=1)[:, :12]
    pairs["item_id"] = own.ravel() + 20 * (pairs["user_id"] % 4)
    is_test = np.arange(len(pairs)) % 12 < 3
    pairs[~is_test].to_parquet(raw / "train.parquet")
    pairs[is_test].to_parquet(raw / "test.parquet")
    folders = runs.Folders(
        tmp_path / "data", tmp_path / "tables", tmp_path / "runs", tmp_path / "rows"
    )
    board = next(board for board in BOARDS if board.name == "lastfm")
    row = runs.run_row(folders, True, board, 1)
    assert row["seen"]["weights"] == row["seen"]["figures"]
    assert row["seen"]["profiles"]["events"] == len(pairs)
    for figure in board.figures:
        assert row["figures"][figure]["value"] == pytest.approx(
            row["by_the_run"][figure]["value"], abs=1e-9
        )
        assert row["figures"][figure]["value"] > 0.2
