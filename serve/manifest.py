"""`manifest.json`: what a bundle is, in one canonical text that is signed by its own hash.

The text is JSON with sorted keys, indent 1 and a newline. `sha256` is the hash of that text without the
`sha256` key, and a file that is not byte for byte canonical is refused, so no single byte of it can change.
It holds no time, duration, host or path: the same seed gives the same version.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from serve.errors import BundleError, name_nearest
from serve.layout import MANIFEST, PUBLISHED
from serve.schema import Similarity

FORMAT = 3
MAX_BYTES = 1 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPACE = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Facts:
    """What only the run that made a bundle can say about it."""

    similarity: Similarity
    popularity_dims: int
    """How many columns, the last ones of the item vectors, are popularity and no part of a likeness."""
    index_recall: float
    """Share of the exact best items that the index found when it was measured."""
    counts: Mapping[str, int]
    """Users, items, interactions and the like."""
    libraries: Mapping[str, str]
    """Name -> version of what trained and exported it."""
    data_until: int
    """UTC seconds just after the last training event."""
    config: Mapping[str, Any]
    """The run's configuration, without paths of the machine."""
    neighbour_decay: float
    """See `Neighbours.decay`."""


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Manifest:
    """All that `manifest.json` says; its facts stand there beside the other keys."""

    facts: Facts
    space_id: str
    """Which space the vectors live in: towers, vectors and index of one bundle share it."""
    files: Mapping[str, FileEntry]
    """Name -> hash and size of every other file of the folder."""
    dim: int
    """Columns of the item vectors, popularity included."""
    metrics: Mapping[str, Any]
    sha256: str
    """Of the canonical text without this key."""

    @property
    def version(self) -> str:
        return self.sha256[:12]

    @classmethod
    def create(
        cls, facts: Facts, space_id: str, dim: int, files: Mapping[str, FileEntry], metrics: Mapping[str, Any]
    ) -> Manifest:
        """Put a manifest together and hash it.

        Raises:
            ValueError: a fact of the wrong type, or a number that is not finite.
        """
        unsigned = _to_json(cls(facts, space_id, files, dim, metrics, sha256=""))
        del unsigned["sha256"]
        return cls.from_bytes(_render(unsigned | {"sha256": _hash(unsigned)}))

    def to_bytes(self) -> bytes:
        """Write the canonical text."""
        return _render(_to_json(self))

    @classmethod
    def from_bytes(cls, text: bytes) -> Manifest:
        """Read what `to_bytes` wrote, and nothing else.

        Raises:
            BundleError: too long, no JSON, unknown or missing keys, a wrong type, or altered since.
        """
        raw = _parse(text)
        _check_keys(raw)
        for name, (is_right, expected) in _RULES.items():  # the format first
            if not is_right(raw[name]):
                raise BundleError(f"{MANIFEST}: '{name}' is {_shorten(raw[name])}; expected {expected}")
        unsigned = {name: value for name, value in raw.items() if name != "sha256"}
        if _hash(unsigned) != raw["sha256"] or _render(raw) != text:
            raise BundleError(f"{MANIFEST} was altered after it was written: its hash differs; export again")
        return _from_json(raw)


def compute_space_id(vectors: NDArray[np.float32], schema: bytes) -> str:
    """Name the space of item vectors (N, D) and the schema they were encoded by: 16 hex digits."""
    digest = hashlib.sha256(np.ascontiguousarray(vectors, dtype="<f4").data)
    digest.update(schema)
    return digest.hexdigest()[:16]


def _to_json(manifest: Manifest) -> dict[str, Any]:
    content = asdict(manifest)
    facts: dict[str, Any] = content.pop("facts")
    return facts | content | {"format": FORMAT}


def _from_json(content: dict[str, Any]) -> Manifest:
    del content["format"]
    facts = Facts(**{field.name: content.pop(field.name) for field in fields(Facts)})
    files = {name: FileEntry(**entry) for name, entry in content.pop("files").items()}
    return Manifest(facts=facts, files=files, **content)


def _render(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _hash(unsigned: Mapping[str, Any]) -> str:
    return hashlib.sha256(_render(unsigned)).hexdigest()


def _parse(text: bytes) -> dict[str, Any]:
    if len(text) > MAX_BYTES:
        raise BundleError(f"{MANIFEST} has {len(text)} bytes; allowed: {MAX_BYTES}")
    try:
        raw = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        _render(raw)  # what cannot be written again was not written by us: 1e999, which is read as infinite
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} is no JSON: {error}") from error
    if not isinstance(raw, dict):
        raise BundleError(f"{MANIFEST} is {_shorten(raw)}; expected an object")
    return raw


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {_shorten(max(names, key=names.count))} stands there twice")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _check_keys(raw: Mapping[str, Any]) -> None:
    """Refuse unknown and missing keys, but for those of another format, whose number is refused."""
    if "files" not in raw:  # which the bundles of every format have: it may be that of profiles
        raise BundleError(f"{MANIFEST} is not that of a bundle: it names no files")
    if not _RULES["format"][0](raw.get("format", FORMAT)):
        return
    for name in sorted(raw.keys() - _RULES.keys()):
        raise BundleError(f"{MANIFEST}: unknown key {_shorten(name)}; {name_nearest(name, _RULES)}")
    for name in sorted(_RULES.keys() - raw.keys()):
        raise BundleError(f"{MANIFEST}: key '{name}' is missing")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_entry(name: str, entry: Any) -> bool:
    if name not in PUBLISHED or not isinstance(entry, dict) or entry.keys() != {"sha256", "size"}:
        return False
    return _is_digest(entry["sha256"], _SHA256) and _is_count(entry["size"]) and entry["size"] > 0


def _is_digest(value: Any, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_mapping_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(is_right(entry) for entry in value.values())


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda value: type(value) is int and value == FORMAT, f"{FORMAT}: train again"),
    "similarity": (lambda value: value in list(get_args(Similarity)), "'dot' or 'cosine'"),
    "popularity_dims": (_is_count, "a count"),
    "index_recall": (lambda value: type(value) in (int, float) and 0 <= value <= 1, "a number from 0 to 1"),
    "counts": (_is_mapping_of(_is_count), "counts by name"),
    "libraries": (_is_mapping_of(lambda value: isinstance(value, str)), "versions by name"),
    "data_until": (lambda value: type(value) is int, "whole seconds"),
    "config": (lambda value: isinstance(value, dict), "an object"),
    "neighbour_decay": (lambda value: type(value) in (int, float) and 0 <= value <= 999, "a number from 0 to 999"),
    "space_id": (lambda value: _is_digest(value, _SPACE), "16 hex digits"),
    "files": (
        lambda value: isinstance(value, dict) and all(_is_entry(*item) for item in value.items()),
        f"sha256 and size of files among {', '.join(sorted(PUBLISHED))}",
    ),
    "dim": (lambda value: _is_count(value) and value > 0, "a count above 0"),
    "metrics": (lambda value: isinstance(value, dict), "an object"),
    "sha256": (lambda value: _is_digest(value, _SHA256), "64 hex digits"),
}
