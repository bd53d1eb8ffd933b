from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from serve.bundle import Bundle, Manifest, identify_folder
from serve.errors import BundleError
from serve.recommender import replay
from tests.tiny_bundle import (
    FACTS,
    METRICS,
    SCHEMA,
    D,
    answer_with,
    item_ids,
    publish_tiny,
    tiny_vectors,
)

FILES = sorted(
    [
        "schema.json",
        "user_tower.onnx",
        "item_tower.onnx",
        "item_neighbour_offsets.npy",
        "item_neighbours.npy",
        "items.faiss",
        "items.parquet",
        "golden.json",
        "MODEL_CARD.md",
    ]
)


def test_a_bundle_holds_what_was_staged(tiny_bundle):
    bundle = Bundle.load(tiny_bundle(1))
    assert np.array_equal(bundle.vectors, tiny_vectors(1))
    assert bundle.schema == SCHEMA
    assert bundle.manifest.facts == FACTS
    assert bundle.manifest.metrics == METRICS
    assert sorted(bundle.manifest.files) == FILES
    assert bundle.items.column("item_id").to_pylist() == item_ids()
    assert bundle.items.column("title")[3].as_py() == "Title 1 3"
    assert bundle.manifest.dim == D


def test_a_bundle_that_answers_differently_is_told_by_its_golden_requests(tiny_bundle):
    bundle = Bundle.load(tiny_bundle(2))
    assert replay(bundle.golden, answer_with(bundle)) == 4

    def answer_worse(requests, k):
        answers = answer_with(bundle)(requests, 2 * k)
        return [replace(answer, item_id=np.roll(answer.item_id, -1)) for answer in answers]

    with pytest.raises(BundleError, match=r"golden\.json, request 0"):
        replay(bundle.golden, answer_worse)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_flipped_byte_another_length_or_no_file_is_refused_naming_it(tiny_bundle, name):
    path = tiny_bundle(1)
    content = (path / name).read_bytes()
    places = {
        0,
        len(content) // 2,
        len(content) - 1,
        *np.random.default_rng(7).integers(len(content), size=20),
    }
    flipped = [
        content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :] for place in places
    ]
    for altered in (
        *flipped,
        b"",
        content[:1],
        content[: len(content) // 2],
        content[:-1],
        content + b"\0",
    ):
        (path / name).write_bytes(altered)
        with pytest.raises(BundleError, match=re.escape(name)):
            Bundle.load(path)
    (path / name).write_bytes(content)
    Bundle.load(path)
    (path / name).unlink()
    with pytest.raises(BundleError, match=rf"{re.escape(name)} is missing"):
        Bundle.load(path)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_file_of_another_bundle_is_refused_naming_it(tiny_bundle, name):
    path, other = tiny_bundle(1), tiny_bundle(2)
    if (path / name).read_bytes() == (other / name).read_bytes():
        assert name == "schema.json"  # two bundles of one schema: no mixture
        return
    shutil.copy(other / name, path / name)
    with pytest.raises(BundleError, match=re.escape(name)):
        Bundle.load(path)


@pytest.mark.parametrize("name", ["items.txt", "items.faiss.part", ".hidden", "model.pkl"])
def test_an_extra_file_is_refused_naming_it(tiny_bundle, name):
    path = tiny_bundle(1)
    (path / name).touch()
    with pytest.raises(BundleError, match=re.escape(name)):
        Bundle.load(path)


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic link", "hard link"])
@pytest.mark.parametrize("name", ["items.parquet", "manifest.json"])
def test_a_link_is_refused_even_to_the_right_content(tiny_bundle, tmp_path, link, name):
    path = tiny_bundle(1)
    (path / name).rename(tmp_path / name)
    link(tmp_path / name, path / name)
    with pytest.raises(BundleError, match=rf"{re.escape(name)}.* links"):
        Bundle.load(path)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_refused(tiny_bundle, make):
    path = tiny_bundle(1)
    (path / "golden.json").unlink()
    make(path / "golden.json")
    with pytest.raises(BundleError, match=r"golden\.json"):
        Bundle.load(path)


@pytest.mark.parametrize(
    "make",
    [Path.mkdir, Path.touch, lambda path: None],
    ids=["empty", "file", "nothing"],
)
def test_what_is_no_bundle_is_refused_naming_the_path(tmp_path, make):
    make(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"no bundle at .*nowhere"):
        Bundle.load(tmp_path / "nowhere")


def test_a_folder_with_a_bundle_and_a_file_on_the_way_to_one_are_told_from_a_bundle(
    tmp_path,
):
    (tmp_path / "bundle").mkdir()
    with pytest.raises(
        BundleError,
        match=rf"manifest\.json is missing; did you mean {tmp_path}/bundle\?",
    ):
        Bundle.load(tmp_path)
    (tmp_path / "notes.txt").touch()
    assert identify_folder(tmp_path / "notes.txt" / "bundle") is None
    with pytest.raises(BundleError, match=r"no bundle at .*notes\.txt/bundle: Not a directory"):
        Bundle.load(tmp_path / "notes.txt" / "bundle")


def test_the_same_content_gives_the_same_version_wherever_it_is_made(tmp_path):
    versions = {publish_tiny(tmp_path / name, 1).manifest.version for name in ("a", "b")}
    assert len(versions) == 1
    assert publish_tiny(tmp_path / "c", 2).manifest.version not in versions


def test_the_space_of_the_manifest_is_that_of_the_files(tiny_bundle):
    path = tiny_bundle(1)
    expected = hashlib.sha256(
        tiny_vectors(1).tobytes() + (path / "schema.json").read_bytes()
    ).hexdigest()[:16]
    bundle = Bundle.load(path)
    assert (
        bundle.manifest.space_id
        == bundle.user_tower.space_id
        == bundle.item_tower.space_id
        == expected
    )


def test_every_flipped_byte_of_a_manifest_is_refused(tiny_bundle):
    text = (tiny_bundle(1) / "manifest.json").read_bytes()
    assert Manifest.from_bytes(text).to_bytes() == text
    for place in range(len(text)):
        for bit in (0x01, 0x10, 0x20):
            altered = text[:place] + bytes([text[place] ^ bit]) + text[place + 1 :]
            with pytest.raises(BundleError):
                Manifest.from_bytes(altered)


@pytest.mark.parametrize("number", [1, 3, 5, True, None])
def test_another_format_is_refused_by_its_number(tiny_bundle, number):
    raw = json.loads((tiny_bundle(1) / "manifest.json").read_bytes()) | {"format": number}
    with pytest.raises(BundleError, match=f"format is {number}; expected 4: train again"):
        Manifest.from_bytes(json.dumps(raw).encode())


@pytest.mark.parametrize(
    "change", [{"more": 1}, {"files": {"../x": {"sha256": "0" * 64, "size": 1}}}]
)
def test_a_signed_manifest_with_other_keys_or_files_is_refused(tiny_bundle, change):
    raw = json.loads((tiny_bundle(1) / "manifest.json").read_bytes()) | change
    del raw["sha256"]
    raw["sha256"] = hashlib.sha256(
        (json.dumps(raw, indent=1, sort_keys=True) + "\n").encode()
    ).hexdigest()
    with pytest.raises(BundleError):
        Manifest.from_bytes((json.dumps(raw, indent=1, sort_keys=True) + "\n").encode())


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"\xff", b'{"files": NaN}', b"[" * 100_000, b" " * 2**21]
)
def test_hostile_text_is_no_manifest(text):
    with pytest.raises(BundleError):
        Manifest.from_bytes(text)
