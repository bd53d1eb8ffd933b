"""Everything that may be wrong with a bundle's folder: each entry damages one and names what a reader must say.

A1 half written, A2 other bytes, A3 mixed from two trainings, A4 another order of features, A5 names that lead
elsewhere. Where hashes would tell, the manifest is signed anew, so that the other checks must find it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from serve.bundle import PUBLISHED

Damage = Callable[[Path, Path], None]
"""(bundle to damage, whole bundle of another training) -> None"""

FILES = sorted(PUBLISHED)
MANIFEST = "manifest.json"


def sign(folder: Path, raw: dict) -> None:
    """Write a manifest whose own hash is right, whatever it says."""
    unsigned = {key: value for key, value in raw.items() if key != "sha256"}
    digest = hashlib.sha256((json.dumps(unsigned, indent=1, sort_keys=True) + "\n").encode()).hexdigest()
    text = json.dumps(unsigned | {"sha256": digest}, indent=1, sort_keys=True) + "\n"
    (folder / MANIFEST).write_text(text)


def sign_files(folder: Path) -> None:
    """Let the manifest say the hashes that the files have now."""
    raw = json.loads((folder / MANIFEST).read_bytes())
    for name in FILES:
        content = (folder / name).read_bytes()
        raw["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    sign(folder, raw)


def write_half(n_files: int, folder: Path, other: Path) -> None:
    for name in [*FILES, MANIFEST][n_files:]:
        (folder / name).unlink()


def stop_inside(name: str, folder: Path, other: Path) -> None:
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    (folder / f"{name}.part").write_bytes(content[: len(content) // 2])


def flip(name: str, part: float, folder: Path, other: Path) -> None:
    content = bytearray((folder / name).read_bytes())
    content[round(part * (len(content) - 1))] ^= 0x10
    (folder / name).write_bytes(content)


def cut(name: str, part: float, folder: Path, other: Path) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(part * (len(content) - 1))])


def lengthen(name: str, folder: Path, other: Path) -> None:
    with (folder / name).open("ab") as file:
        file.write(b"\0")


def exchange(left: str, right: str, folder: Path, other: Path) -> None:
    os.rename(folder / left, folder / "aside")
    os.rename(folder / right, folder / left)
    os.rename(folder / "aside", folder / right)


def mix(name: str, folder: Path, other: Path) -> None:
    shutil.copy(other / name, folder / name)


def mix_and_sign(name: str, folder: Path, other: Path) -> None:
    mix(name, folder, other)
    sign_files(folder)


def turn_features(kind: str, folder: Path, other: Path) -> None:
    schema = json.loads((folder / "schema.json").read_bytes())
    schema[kind].reverse()
    (folder / "schema.json").write_text(json.dumps(schema))
    sign_files(folder)


def turn_vocabulary(folder: Path, other: Path) -> None:
    text = (folder / "schema.json").read_text()
    schema = json.loads(text)
    schema["item_features"][0]["vocabulary"].reverse()
    (folder / "schema.json").write_text(json.dumps(schema))
    sign_files(folder)


def turn_items(folder: Path, other: Path) -> None:
    vectors = np.load(folder / "item_vectors.npy")
    np.save(folder / "item_vectors.npy", vectors[::-1])
    sign_files(folder)


def answer_otherwise(folder: Path, other: Path) -> None:
    entries = json.loads((folder / "golden.json").read_bytes())
    entries[0]["scores"] = [score + 1 for score in entries[0]["scores"]]
    (folder / "golden.json").write_text(json.dumps(entries))
    sign_files(folder)


def list_name(name: str, folder: Path, other: Path) -> None:
    raw = json.loads((folder / MANIFEST).read_bytes())
    raw["files"][name] = raw["files"].pop("items.faiss")
    sign(folder, raw)


def link(how: Callable[[Path, Path], None], name: str, folder: Path, other: Path) -> None:
    (folder / name).rename(folder.parent / f"linked-{name}")
    how(folder.parent / f"linked-{name}", folder / name)


def replace_by(make: Callable[[Path], None], name: str, folder: Path, other: Path) -> None:
    (folder / name).unlink()
    make(folder / name)


def add(name: str, folder: Path, other: Path) -> None:
    (folder / name).touch()


NAMES = (
    *("../items.faiss", "../../etc/passwd", "/etc/passwd", "./items.faiss", "items.faiss/", "a/items.faiss"),
    *("..", ".", "", "items.faiss\0", "\0", "items.faiss\n", "..\\items.faiss", "C:\\items.faiss", "~/items.faiss"),
    *("%2e%2e/items.faiss", "file:///etc/passwd", "/dev/zero", "/proc/self/mem", "ITEMS.FAISS", "items.faiss "),
    *("x" * 300, "x/" * 200, "\u2025/items.faiss", "items\u200b.faiss", "manifest.json", "model.pkl", "last.ckpt"),
)


def damages() -> Iterator[tuple[str, Damage, str]]:
    """Yield (what it is, the damage, pattern of what must be said)."""
    for number in range(len(FILES) + 1):
        yield f"A1 {number} files", partial(write_half, number), "missing"
    for name in (*FILES, MANIFEST):
        yield f"A1 stopped inside {name}", partial(stop_inside, name), re.escape(name)
        for part in (0.0, 0.3, 0.5, 0.8, 1.0):
            yield f"A2 byte flipped at {part} of {name}", partial(flip, name, part), re.escape(name)
        for part in (0.0, 0.1, 0.5, 1.0):
            yield f"A2 {name} cut at {part}", partial(cut, name, part), re.escape(name)
        yield f"A2 {name} longer", partial(lengthen, name), re.escape(name)
    for left, right in pairwise(FILES):
        yield f"A2 {left} and {right} exchanged", partial(exchange, left, right), re.escape(left)
    for name in ("golden.json", "item_vectors.npy", "items.faiss", "user_tower.onnx", "item_tower.onnx"):
        yield f"A3 {name} of another training", partial(mix, name), re.escape(name)
        yield f"A3 {name} of another training, signed", partial(mix_and_sign, name), "space|other vectors|golden"
    for kind in ("item_features", "user_features", "context_features"):
        yield f"A4 {kind} turned", partial(turn_features, kind), r"item_vectors\.npy and schema\.json are not of space"
    yield "A4 vocabulary turned", turn_vocabulary, r"item_vectors\.npy and schema\.json are not of space"
    yield "A4 rows of items turned", turn_items, r"item_vectors\.npy and schema\.json are not of space"
    yield "A4 answers otherwise", answer_otherwise, r"golden\.json, request 0"
    yield from _elsewhere()


def _elsewhere() -> Iterator[tuple[str, Damage, str]]:
    for name in NAMES:
        yield f"A5 {name[:20]!r} listed", partial(list_name, name), "'files' is"
    for name in ("items.parquet", "user_tower.onnx", MANIFEST):
        for how in (os.symlink, os.link):
            yield f"A5 {name} by {how.__name__}", partial(link, how, name), rf"{re.escape(name)}.*links"
        for make in (os.mkdir, os.mkfifo):
            yield f"A5 {name} by {make.__name__}", partial(replace_by, make, name), re.escape(name)
    device = partial(replace_by, lambda path: path.symlink_to("/dev/zero"), "items.faiss")
    yield "A5 a device", device, r"items\.faiss.*links"
    for name in ("model.pkl", ".hidden", "items.faiss.part", "x" * 200):
        yield f"A5 {name[:20]} more", partial(add, name), re.escape(name)
