from __future__ import annotations

import copy
import re
from dataclasses import replace
from types import MappingProxyType

import pytest

from evaluation.report.model_card import render_card
from serve.manifest import Facts
from serve.schema import Feature
from tests.linear_bundle import FILMS, SHOP, UNTIL
from tests.tiny_run import DATA, make_tiny_run
from tests.tiny_towers import one_thread

FACTS = Facts(
    similarity="cosine",
    popularity_dims=2,
    index_recall=1.0,
    counts={"items": 23, "users": 67, "epochs": 3},
    libraries={"numpy": "2.4.6", "torch": "2.13.0"},
    data_until=UNTIL,
    config={"seed": 11, "data": {"audit_only": ["religion"]}, "model": {"dim": 48}},
    neighbour_decay=0.0,
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with one_thread():
        return make_tiny_run(tmp_path_factory.mktemp("shop"), SHOP)


def card(content, schema=SHOP, data=DATA, facts=FACTS, training=MappingProxyType({})):
    metrics = {name: content[name] for name in content if name not in ("data", "timing", "version", "training")}
    return render_card(metrics, data, training, schema, facts)


def section(text, title):
    """Return what stands below a heading, up to the next one of its level."""
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text):
    """Return the cells of all table rows, by table."""
    tables, last = [], False
    for line in text.splitlines():
        is_row = line.startswith("|")
        if is_row:
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if last:
                tables[-1].append(cells)
            else:
                tables.append([cells])
        last = is_row
    return tables


def test_tables_are_whole(shop):
    tables = rows(card(shop.content))
    assert len(tables) > 12
    for table in tables:
        assert {len(cells) for cells in table} == {len(table[0])}
        assert all(re.fullmatch(r":?-+:?", cell) for cell in table[1])
        assert len(table) > 2


def test_one_user_and_one_target_are_said_in_the_singular(shop):
    content = copy.deepcopy(shop.content)
    for models in content["test"].values():
        models["all"] |= {"users": 1, "targets": 1, "targets_outside_catalogue": 1}
    assert "1 user with 1 target; 1 target is outside the catalogue" in card(content)


def test_figures_are_those_of_the_metrics(shop):
    views = section(card(shop.content), "How good it is").split("\n### ")[1:]
    assert len(views) == 3
    for view, text in zip(("all", "repeat", "novel"), views, strict=True):
        (table,) = rows(text)
        by_label = {cells[0].strip("*"): cells[1:] for cells in table[2:]}
        assert len(by_label) == len(shop.content["test"])
        ours = shop.content["test"]["bascule"][view]
        low, high = ours["NDCG@20_ci95"]
        assert by_label["Bascule"][:2] == [f"{ours['NDCG@20']:.4f}", f"{low:.4f} to {high:.4f}"]
        difference = shop.content["paired"]["itemknn"][view]["NDCG@20"]
        assert by_label["ItemKNN"][2].replace("−", "-") == f"{difference:+.4f}"


def test_groups_are_shown_from_20_users_on(shop):
    text = section(card(shop.content), "For whom")
    groups = {cells[0] for table in rows(text) for cells in table[2:]}
    known = shop.content["slices"]["all"]["sex"]
    assert {"f", "m", "missing"} & groups == {label for label, figures in known.items() if figures["users"] >= 20}
    assert "few" in known
    assert "few" not in groups


def test_the_largest_gap_is_said_with_its_doubt(shop):
    content = copy.deepcopy(shop.content)
    groups = {
        "f": {"users": 31, "NDCG@20": 0.25, "NDCG@20_ci95": [0.2, 0.3]},
        "m": {"users": 29, "NDCG@20": 0.5, "NDCG@20_ci95": [0.4, 0.6]},
        "x": {"users": 19, "NDCG@20": 0.9, "NDCG@20_ci95": [0.8, 1.0]},
        "missing": {"users": 21, "NDCG@20": 0.125, "NDCG@20_ci95": [0.1, 0.2]},
    }
    content["slices"]["all"]["sex"] = groups
    text = section(card(content), "For whom")
    assert "Sex: NDCG@20 is 0.5000 for “m” (29 users) and 0.2500 for “f” (31 users), a gap of 0.2500." in text
    assert "(0.4000 to 0.6000, 0.2000 to 0.3000) are apart." in text
    assert "0.1250" in text
    groups["f"]["NDCG@20_ci95"] = [0.2, 0.45]
    assert "overlap, so this may be chance" in section(card(content), "For whom").split("Sex")[-1]


def test_features_dropped_columns_and_audit_columns_are_named(shop):
    text = card(shop.content)
    reads = section(text, "What the model reads")
    assert ["User", "gender", "categorical", "sex"] in rows(reads)[0]
    assert ["Item", "price", "numeric", "price"] in rows(reads)[0]
    assert ["Request context", "hour", "hour\\_of\\_day", "datetime"] in rows(reads)[0]
    assert "religion" in reads
    assert "secret\\|column" in section(text, "Data")
    assert "till" in section(text, "Data")


def test_names_of_the_data_are_no_markup(shop):
    feature = Feature("<b>|x", "categorical", "*a*\nb", ("v",))
    text = card(shop.content, schema=replace(SHOP, item_features=(feature,)))
    assert ["Item", "\\<b\\>\\|x", "categorical", "\\*a\\* b"] in rows(section(text, "What the model reads"))[0]


def test_it_holds_no_person_path_time_or_duration(shop):
    text = card(shop.content)
    assert text == card(copy.deepcopy(shop.content))
    assert "person-" not in text
    assert str(shop.folder) not in text
    assert "3725" not in text
    assert "1 h 2 min" not in text


def test_how_it_was_made(shop):
    made = dict(rows(section(card(shop.content), "How it was made"))[0])
    assert made["Seed"] == "11"
    assert made["Similarity"] == "cosine"
    assert made["`dim`"] == "48"
    assert made["torch"] == "2.13.0"


def test_a_run_without_a_test_has_a_card():
    protocol = {"protocol": {"split": "none", "note": "everything trains"}}
    text = render_card(
        protocol, DATA, {}, replace(FILMS, user_features=(), item_features=(), context_features=()), FACTS
    )
    assert "Nothing was held out" in section(text, "How good it is")
    assert "no group was measured" in section(text, "For whom")
    assert "histories alone" in section(text, "What the model reads")
    assert "Not measured at all" in section(text, "Limits")
    assert "`report.html` of the run says how much" in section(text, "Limits")
    assert "metrics.json" not in text  # it says nothing of lists
    assert "Measured on recorded events" not in text
    assert "test users without any event in training 3.1" in section(text, "Limits")


def test_a_split_that_found_nobody_to_hold_out_says_so():
    data = DATA | {"split": {"kind": "leave_one_out"}, "counts": DATA["counts"] | {"test": 0}, "targets": None}
    text = render_card({"protocol": {"split": "leave_one_out", "note": "everything trains"}}, data, {}, FILMS, FACTS)
    assert "| Held out for the test | nothing; it would be the last event of each user |" in text
    data = DATA | {"split": {"kind": "leave_one_out"}, "targets": {"train": 9, "validation": 2, "test": 0}}
    assert "nothing; it would be the last event of each user" in render_card({"protocol": {}}, data, {}, FILMS, FACTS)
    data |= {"split": {"kind": "none"}}
    assert "| nothing: everything trains |" in render_card({"protocol": {}}, data, {}, FILMS, FACTS)


def test_a_skipped_baseline_is_named_without_its_reason(shop):
    content = copy.deepcopy(shop.content)
    content["baselines"]["ease"] = {"skipped": "it would take more memory than is free"}
    text = card(content)
    assert "Not measured: EASE." in text
    assert "memory than is free" not in text


@pytest.mark.parametrize(
    ("kind", "is_set", "said"),
    [
        ("transitions", False, "which come after it."),
        ("regressions", True, "which go together with it."),
        ("regressions", False, "by the validation the order of events tells nothing of what comes next"),
    ],
)
def test_what_neighbours_tell_is_said_and_that_an_order_tells_nothing(shop, kind, is_set, said):
    schema = replace(FILMS, has_datetime=False, ties="simultaneous") if is_set else FILMS
    blend = {"share": 0.4, "decay": 0.1, "ridge": 100.0, "kind": kind, "n_neighbours": 64}
    text = section(card(shop.content, schema, training={"correlations": {"blend": blend}}), "What the model reads")
    (sentence,) = re.findall(r"\n\n(Each item of a history adds to the scores of its neighbours, .*)\n\n", text)
    assert said in sentence
    assert ("tells nothing" in sentence) == ("tells nothing" in said)
    for none in ({}, {"correlations": {"blend": {**blend, "share": 0.0}}}):
        assert "neighbours" not in section(card(shop.content, schema, training=none), "What the model reads")
