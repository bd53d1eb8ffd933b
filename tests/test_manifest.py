from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from serve.bundle import (
    Facts,
    FileEntry,
    Manifest,
    compute_space_id,
)
from serve.errors import BundleError

FACTS = Facts(
    similarity="cosine",
    popularity_dims=2,
    index_recall=0.75,
    counts={"items": 11, "users": 5},
    libraries={"numpy": "2.4"},
    data_until=-7,
    config={"seed": 3, "names": ["a", "é"]},
    neighbour_decay=0.25,
)
FILES = {"schema.json": FileEntry("ab" * 32, 13), "items.faiss": FileEntry("cd" * 32, 17)}
METRICS = {"test": {"ndcg": 0.1, "ndcg_ci95": [0.05, 0.2]}}


def make() -> Manifest:
    return Manifest.create(FACTS, "0123456789abcdef", 7, FILES, METRICS)


def sign(raw: dict) -> bytes:
    """Render and hash independently, so that only what is said is wrong."""
    unsigned = {key: value for key, value in raw.items() if key != "sha256"}
    digest = hashlib.sha256((json.dumps(unsigned, indent=1, sort_keys=True) + "\n").encode()).hexdigest()
    return (json.dumps(unsigned | {"sha256": digest}, indent=1, sort_keys=True) + "\n").encode()


def test_reading_gives_back_what_was_written():
    manifest = make()
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert (manifest.facts, manifest.files, manifest.metrics, manifest.dim) == (FACTS, FILES, METRICS, 7)


def test_the_file_holds_the_keys_of_the_contract_and_nothing_of_a_machine():
    assert json.loads(make().to_bytes()).keys() == {
        *("format", "space_id", "files", "similarity", "dim", "popularity_dims", "counts", "metrics"),
        *("index_recall", "libraries", "data_until", "config", "neighbour_decay", "sha256"),
    }


def test_the_hash_is_of_the_canonical_text_without_it_and_begins_with_the_version():
    text = make().to_bytes()
    assert sign(json.loads(text)) == text
    assert json.loads(text)["sha256"].startswith(make().version)
    assert len(make().version) == 12


def test_the_order_of_keys_has_no_influence():
    turned = dataclasses.replace(FACTS, counts=dict(reversed(FACTS.counts.items())))
    files = dict(reversed(FILES.items()))
    assert Manifest.create(turned, "0123456789abcdef", 7, files, METRICS).version == make().version


def test_any_altered_byte_is_refused():
    text = make().to_bytes()
    for place in range(len(text)):
        for bit in (0x01, 0x20):  # 0x20: upper and lower case, space and NUL
            altered = bytearray(text)
            altered[place] ^= bit
            with pytest.raises(BundleError, match=r"manifest\.json"):
                Manifest.from_bytes(bytes(altered))


def test_a_number_beyond_all_floats_is_refused_as_any_alteration_is():
    text = make().to_bytes()
    for number in (b"0.1", b"0.05", b"0.25", b"3"):
        altered = text.replace(b" " + number + b",", b" 1e999,").replace(b" " + number + b"\n", b" -1e999\n")
        assert altered != text
        with pytest.raises(BundleError, match=r"manifest\.json is no JSON"):
            Manifest.from_bytes(altered)


def test_lists_within_each_other_are_refused_however_many():
    for depth in (30, 300, 900, 1500, 5_000, 100_000):
        nested = b"[" * depth + b"]" * depth
        with pytest.raises(BundleError, match=r"manifest\.json"):
            Manifest.from_bytes(make().to_bytes().replace(b"0.25", nested).replace(b"0.1", nested))


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_truncated_text_is_refused(length):
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Manifest.from_bytes(make().to_bytes()[:length])


@pytest.mark.parametrize("key", sorted(json.loads(make().to_bytes()).keys() - {"files"}))
def test_a_missing_key_is_named(key):
    raw = json.loads(make().to_bytes())
    del raw[key]
    with pytest.raises(BundleError, match=f"key '{key}' is missing"):
        Manifest.from_bytes(json.dumps(raw).encode())


@pytest.mark.parametrize("raw", [{}, {"format": 1, "users": {}, "events": {}}, {"name": "a page", "icons": []}])
def test_what_names_no_files_is_that_of_something_else(raw):
    with pytest.raises(BundleError, match="is not that of a bundle: it names no files"):
        Manifest.from_bytes(json.dumps(raw).encode())


def test_of_another_format_the_number_is_named_whatever_keys_it_has():
    raw = json.loads(make().to_bytes()) | {"format": 2, "what_it_had": 1}
    del raw["neighbour_decay"]
    with pytest.raises(BundleError, match="'format' is 2; expected 3: train again"):
        Manifest.from_bytes(sign(raw))


def test_an_unknown_key_is_named_with_its_nearest():
    raw = json.loads(make().to_bytes()) | {"similarty": "dot"}
    with pytest.raises(BundleError, match="unknown key 'similarty'; did you mean 'similarity'"):
        Manifest.from_bytes(sign(raw))


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("format", 2, "2; expected 3"),
        ("neighbour_decay", -0.5, "-0.5; expected a number from 0 to 999"),
        ("format", True, "True"),
        ("similarity", "euclid", "'euclid'"),
        ("similarity", ["dot"], r"\['dot'\]"),
        ("dim", 0, "0"),
        ("dim", 7.0, r"7\.0"),
        ("popularity_dims", -1, "-1"),
        ("popularity_dims", True, "True"),
        ("index_recall", 1.5, r"1\.5"),
        ("index_recall", "1", "'1'"),
        ("counts", {"items": -3}, "-3"),
        ("counts", [3], r"\[3\]"),
        ("libraries", {"numpy": 2}, "'numpy': 2"),
        ("data_until", 1.5, r"1\.5"),
        ("config", None, "None"),
        ("metrics", [], r"\[\]"),
        ("space_id", "0123", "'0123'"),
        ("space_id", "0123456789ABCDEF", "ABCDEF"),
        ("files", {"../x": {"sha256": "ab" * 32, "size": 3}}, r"\.\./x"),
        ("files", {"/etc/passwd": {"sha256": "ab" * 32, "size": 3}}, "/etc/passwd"),
        ("files", {"schema.json\0": {"sha256": "ab" * 32, "size": 3}}, "schema.json"),
        ("files", {"manifest.json": {"sha256": "ab" * 32, "size": 3}}, "manifest.json"),
        ("files", {"schema.json": {"sha256": "ab" * 32}}, "schema.json"),
        ("files", {"schema.json": {"sha256": "ab" * 32, "size": 0}}, "schema.json"),
        ("files", {"schema.json": {"sha256": "ab" * 32, "size": 3, "mode": 7}}, "schema.json"),
        ("files", {"schema.json": {"sha256": "AB" * 32, "size": 3}}, "schema.json"),
        ("files", {"schema.json": "ab" * 32}, "schema.json"),
    ],
)
def test_a_wrong_value_is_refused_by_name(key, value, shown):
    raw = json.loads(make().to_bytes()) | {key: value}
    with pytest.raises(BundleError, match=f"'{key}' is .*{shown}"):
        Manifest.from_bytes(sign(raw))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[]", r"is \[\]; expected an object"),
        (b"\xff", "no JSON"),
        (b'{"dim": NaN}', "NaN is no number"),
        (b'{"dim": 1, "dim": 2}', "'dim' stands there twice"),
        (b"[" * 300_000, "no JSON"),
        (b" " * ((1 << 20) + 1), "1048577 bytes; allowed: 1048576"),
        (b"9" * 5_000, "no JSON"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_hostile_text_is_refused(text, message):
    with pytest.raises(BundleError, match=message):
        Manifest.from_bytes(text)


def test_a_metric_that_is_not_finite_is_not_written():
    with pytest.raises(ValueError, match="nan"):
        Manifest.create(FACTS, "0123456789abcdef", 7, FILES, {"ndcg": float("nan")})


def test_the_space_is_named_by_vectors_and_schema():
    vectors = np.arange(21, dtype=np.float32).reshape(3, 7)
    expected = hashlib.sha256(vectors.tobytes() + b"{}").hexdigest()[:16]
    assert compute_space_id(vectors, b"{}") == expected
    assert compute_space_id(np.asfortranarray(vectors), b"{}") == expected
    assert compute_space_id(vectors, b"{ }") != expected
    assert compute_space_id(vectors + 1, b"{}") != expected
