from itertools import pairwise
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.cells import hash_texts, split_words
from serve.kinds import Feature

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("The Lord, of the RINGS!", ["the", "lord", "of", "the", "rings"]),
        ("snake_case e-mail (1999)", ["snake", "case", "e", "mail", "1999"]),
        ("Straße ＡＢＣ ﬁn", ["strasse", "abc", "fin"]),
        ("cafe\u0301 caf\u00e9", ["caf\u00e9", "caf\u00e9"]),
        ("हिन्दी ไทย", ["हिन्दी".replace("\u200d", ""), "ไทย"]),
        ("“猫”、犬。", ["猫", "犬"]),
        ("a\u00a0b\tc", ["a", "b", "c"]),
        (" ?! ", []),
    ],
)
def test_words(line, words):
    assert split_words(line) == words


def tokens(text):
    """List the tokens of a text of plain words, by the definition."""
    lines = [line.lower().split() for line in text.split("\n")]
    words = [word for line in lines for word in line]
    pairs = [f"{a} {b}" for line in lines for a, b in pairwise(line)]
    pieces = []
    for size in (4, 3, 5):
        for word in words:
            framed = "<" + word + ">"
            pieces += [
                "~" + framed[i : i + size] for i in range(len(framed)) if i + size <= len(framed)
            ]
    return words + pairs + pieces


lines = st.lists(st.text("abcä猫", min_size=1, max_size=6), max_size=5).map(" ".join)
plain = st.lists(lines, max_size=3).map("\n".join)


@given(
    texts=st.lists(st.none() | plain, max_size=5),
    most=st.integers(1, 40),
    bits=st.integers(1, 16),
)
@settings(max_examples=60, deadline=None)
def test_buckets_are_those_of_the_tokens_in_their_order(texts, most, bits):
    found = list(hash_texts(texts, most, 2**bits))
    assert len(found) == len(texts)
    for text, row in zip(texts, found, strict=True):
        expected = [crc32(token.encode()) % 2**bits for token in tokens(text or "")]
        assert row == list(dict.fromkeys(expected))[:most]


def test_codes_are_the_same_in_every_process():
    assert next(iter(hash_texts(["Été 猫"], 64)))[0] == 1154575572
    codes = Feature("t", "text", "t", width=7, buckets=8).encode(["ab", None, "ab", "?"])
    row = list(
        dict.fromkeys(2 + crc32(token.encode()) % 8 for token in ("ab", "~<ab>", "~<ab", "~ab>"))
    )
    assert codes.tolist() == [
        row + [0] * (7 - len(row)),
        [1] + [0] * 6,
        row + [0] * (7 - len(row)),
        [1] + [0] * 6,
    ]
    assert Feature("t", "text", "t", width=3, buckets=8).encode([]).shape == (
        0,
        3,
    )


@given(
    texts=st.lists(st.none() | st.text(max_size=30), max_size=7),
    width=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_any_text_has_codes_within_bounds_each_once(texts, width):
    encoded = Feature("t", "text", "t", width=width, buckets=16).encode(texts)
    assert encoded.shape == (len(texts), width)
    for codes in encoded:
        present = codes[codes > 0]
        assert len(present) == len(set(present.tolist())) >= 1
        assert present.max() < 2 + 16
        assert (codes[len(present) :] == 0).all()


def test_what_a_single_text_costs_is_bounded():
    long = ["x" * 10**6, "y z " * 10**5, "\ud800" * 10**4]
    for row in hash_texts(long, most=64):
        assert 1 <= len(row) <= 64
    assert list(hash_texts(["y " * 2048], 64)) == list(hash_texts(["y " * 10**5], 64))
