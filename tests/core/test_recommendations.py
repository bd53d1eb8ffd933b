import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.arrays import to_arrow, to_numpy
from serve.recommendations import Recommendations

ROWS = np.array([[4, 0, 2, 6, 1], [5, 3, -1, -1, -1], [-1, -1, -1, -1, -1]])
SCORES = np.array(
    [[0.9, 0.7, 0.5, 0.5, 0.1], [0.3, -0.2, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=np.float32
)
TEXT_IDS = np.array(["a", "007", 'b,\n"c', "", "é", "f", "g"], dtype=object)
NUMBER_IDS = np.array([10, 11, -12, 2**62, 14, 15, 16])


def make(user_ids=("u", None, "w"), item_ids=TEXT_IDS, user_id_type="string"):
    return Recommendations.from_lists(
        user_ids,
        ROWS,
        SCORES,
        item_ids=item_ids,
        unknown_items=np.array([0, 2, 1]),
        user_id_type=user_id_type,
        reason=np.full(3, None),
        held_back=np.zeros(3, np.int64),
    )


def naive_rows(user_ids, item_ids):
    return [
        {
            "user_id": user_ids[b],
            "item_id": item_ids[row],
            "score": float(SCORES[b, place]),
            "rank": place + 1,
        }
        for b in range(3)
        for place, row in enumerate(ROWS[b])
        if row >= 0
    ]


def test_an_answer_is_found_from_the_end_too():
    answers = make()
    assert [answers.of(n - 3).item_id.tolist() for n in range(3)] == [
        one.item_id.tolist() for one in answers
    ]
    assert len(answers.of(np.int64(-3)).item_id) == 5
    for index in (3, -4):
        with pytest.raises(IndexError):
            answers.of(index)


def test_answer_of_each_request():
    answers = make()
    assert answers.offsets.tolist() == [0, 5, 7, 7]
    assert [answer.user_id for answer in answers] == ["u", None, "w"]
    assert [answer.unknown_items for answer in answers] == [0, 2, 1]
    assert [answer.item_id.tolist() for answer in answers][1:] == [["f", ""], []]
    assert answers.of(1).score.tolist() == SCORES[1, :2].tolist()
    assert answers.of(1).rank.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("users", "ids", "id_type", "kind"),
    [
        (("u", None, "w"), TEXT_IDS, "string", pa.string()),
        ((7, None, 2**60), NUMBER_IDS, "integer", pa.int64()),
    ],
)
def test_table(users, ids, id_type, kind):
    table = make(users, ids, id_type).to_table()
    assert table.schema.types == [kind, kind, pa.float32(), pa.int64()]
    assert table.to_pylist() == naive_rows(users, ids.tolist())


@pytest.mark.parametrize(
    ("user_id_type", "kind"), [("string", pa.string()), ("integer", pa.int64())]
)
def test_the_type_of_users_does_not_depend_on_who_asks(user_id_type, kind):
    table = make((None, None, None), user_id_type=user_id_type).to_table()
    assert table.schema.field("user_id").type == kind
    assert table.column("user_id").null_count == 7


@pytest.mark.parametrize(
    "values",
    [
        [3, -1, 0, 5, 7, 2],
        [0.5, 1.5, -2.0, 3.0, 4.0, 9.0],
        ["a", None, "é", "a", "", "b"],
    ],
)
def test_a_part_of_a_column_is_read_as_that_part(values):
    for column in (
        pa.chunked_array([pa.array(values)]),
        pa.chunked_array([values[:4], values[4:]]),
    ):
        for start, length in ((0, 6), (0, 3), (2, 2), (3, 3), (4, 2), (5, 1), (6, 0)):
            assert to_numpy(column.slice(start, length)).tolist() == values[start : start + length]


def test_flags_to_arrow_with_and_without_nulls():
    flags = np.array([True, False, True, True, False, False, True, False, True])
    assert to_arrow(flags).to_pylist() == flags.tolist()
    assert to_arrow(flags, flags).to_pylist() == [True if flag else None for flag in flags]


@given(
    texts=st.lists(
        st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
        max_size=11,
    )
)
@settings(max_examples=40, deadline=None)
def test_texts_to_arrow_and_back(texts):
    values = np.empty(len(texts), dtype=object)
    values[:] = texts
    array = to_arrow(values)
    array.validate(full=True)
    assert array.to_pylist() == texts
    assert to_numpy(pa.chunked_array([array, array[1:]])).tolist() == texts + texts[1:]
