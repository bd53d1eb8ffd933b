"""A bundle: one immutable folder, verified by hash before anything in it is used.

Each file is opened once, without following links, and mapped: the bytes that are hashed are the
bytes that are used. The manifest holds no time, duration, host or path: the same seed gives the
same version.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve.arrays import Content, Flags, Floats, IdType
from serve.clock import check_seconds, find_zone
from serve.errors import BundleError
from serve.files import (
    check_signature,
    map_file,
    name_file,
    to_canonical_json,
    write_file,
)
from serve.index import ItemIndex, Neighbours, measure_items
from serve.kinds import IS_UNLISTED
from serve.nearest import CoarseIndex, IndexFacts
from serve.recommendations import Segments
from serve.schema import Schema, Similarity, check_record
from serve.tower import Tower

T = TypeVar("T")

# Files of a run and of its bundle: their names are part of the contract.
BUNDLE = "bundle"
MEASURED = "measured"  # holds the bundle of the figures, where the published weights are others
PROFILES = "profiles"
STATE = "state"
LOGS = "logs"
CHECKPOINTS = "checkpoints"
FEEDBACK = "feedback"
STATE_FILE = "state.db"
ITEMS_FILE = "items.db"
FIGURES = "figures.json"  # what was measured of a service: in `FEEDBACK`, and beside it
DRIFT = "drift.json"
METRICS = "metrics.json"
REPORT = "report.html"
CONFIG = "config.yaml"
REJECTS = "rejects.parquet"
CURVES = "metrics.csv"
CURRENT = "CURRENT"
HISTORY = "HISTORY"
MANIFEST = "manifest.json"
SCHEMA = "schema.json"
GOLDEN = "golden.json"
MODEL_CARD = "MODEL_CARD.md"
SIGNATURE = "manifest.sig"  # it may lie beside the manifest, which does not list it
USER_TOWER = "user_tower.onnx"
ITEM_TOWER = "item_tower.onnx"
INDEX = "items.faiss"
COARSE = "coarse.faiss"
ITEMS = "items.parquet"
NEIGHBOURS = "item_neighbours.npy"
NEIGHBOUR_OFFSETS = "item_neighbour_offsets.npy"
SEGMENTS = "segments.json"

# Files that answering needs: a stage with these can be evaluated.
ANSWERING = frozenset(
    {SCHEMA, USER_TOWER, ITEM_TOWER, NEIGHBOURS, NEIGHBOUR_OFFSETS, INDEX, ITEMS}
)
PUBLISHED = ANSWERING | {GOLDEN, MODEL_CARD}  # needed beside the manifest
ALLOWED = PUBLISHED | {SEGMENTS, COARSE}  # any other file is refused
FORMAT = 4  # up to 3, `item_vectors.npy` held the vectors again
_RECALL_LOSS = 0.01  # that another processor may cause
MAX_BYTES = 1 << 20  # of a manifest, and of a signature

_ID_TYPES = {"integer": (pa.int64(),), "string": (pa.string(), pa.large_string())}


@dataclass(frozen=True)
class Facts:
    """Facts that only the run that made a bundle knows."""

    similarity: Similarity
    popularity_dims: int  # last columns of the item vectors that hold popularity
    counts: Mapping[str, int]
    libraries: Mapping[str, str]  # name -> version
    data_until: int  # UTC seconds just after the last training event
    config: Mapping[str, Any]  # the run's, without paths of the machine
    neighbour_decay: float
    neighbour_context_gain: float = 0.0  # earlier bundles have none
    index: IndexFacts | None = None  # None: each search computes all products
    # column of items -> how many of the first rows of a list share a value of it
    variants: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    size: int

    @classmethod
    def of(cls, content: Content) -> FileEntry:
        """Describe the content of a file."""
        return cls(hashlib.sha256(content.data).hexdigest(), content.size)


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`, where the facts stand beside the other keys."""

    facts: Facts
    space_id: str  # towers, index and schema of one bundle share it
    files: Mapping[str, FileEntry]
    dim: int  # columns of the item vectors, popularity included
    metrics: Mapping[str, Any]
    sha256: str  # hash of the canonical text without this key

    @property
    def version(self) -> str:
        return self.sha256[:12]

    def seal(self) -> Manifest:
        """Return the manifest with its hash."""
        return replace(self, sha256=_hash(self._to_json()))

    def _to_json(self) -> dict[str, Any]:
        content = asdict(self)
        facts: dict[str, Any] = content.pop("facts")
        for name in ("index", "variants"):  # named only where there are any
            if not facts[name]:
                del facts[name]
        return facts | content | {"format": FORMAT}

    def to_bytes(self) -> bytes:
        """Write the canonical text."""
        return to_canonical_json(self._to_json())

    @classmethod
    def from_bytes(cls, text: bytes) -> Manifest:
        """Read the text that `to_bytes` wrote, and nothing else."""
        try:
            content = json.loads(text[:MAX_BYTES])
            if content["format"] != FORMAT:
                raise ValueError(
                    f"format is {content['format']}; expected {FORMAT}: train again"
                )
            if (
                to_canonical_json(content) != text
                or _hash(content) != content["sha256"]
            ):
                raise ValueError(
                    "it was altered after it was written, its hash differs; export again"
                )
            for name in ("format", "index_recall"):  # the second is of earlier bundles
                content.pop(name, None)
            names = [each.name for each in fields(Facts) if each.name in content]
            read = {name: content.pop(name) for name in names}
            if "index" in read:
                read["index"] = IndexFacts(**read["index"])
                check_record(read["index"])
            facts = Facts(**read)
            entries = content.pop("files").items()
            files = {name: FileEntry(**entry) for name, entry in entries}
            manifest = cls(facts=facts, files=files, **content)
            check_record(facts)
            check_record(manifest)
            check_seconds(facts.data_until, "data_until")
            if not files.keys() <= ALLOWED:
                raise ValueError(f"it lists {min(files.keys() - ALLOWED)!r}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BundleError(f"{MANIFEST} is not of a bundle: {error}") from error

        return manifest


def _hash(content: Mapping[str, Any]) -> str:
    hashed = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(to_canonical_json(hashed)).hexdigest()


def read_folder(
    path: Path, required: Set[str], trusted: Path | None = None
) -> tuple[Manifest, dict[str, Content]]:
    """Map and verify all files of a bundle.

    Args:
        path: its folder.
        required: names of files that must be there.
        trusted: file of public keys, one of which must have signed the manifest.

    Returns:
        The manifest, and the bytes of each file, of the manifest and the signature too.

    Raises:
        BundleError: a file is missing, unlisted, altered or a link, or the signature is not valid.
    """
    while True:
        identity = identify_folder(path)
        try:
            return _read_once(path, required, trusted)
        except BundleError:
            if identify_folder(path) == identity:
                raise  # no publisher put a new folder in its place meanwhile


def _read_once(
    path: Path, required: Set[str], trusted: Path | None
) -> tuple[Manifest, dict[str, Content]]:
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise BundleError(
            f"no bundle at {path}: {error.strerror}; give the folder with {MANIFEST}"
        ) from error

    try:
        names = set(os.listdir(folder))
        if MANIFEST not in names:
            nearer = f"; did you mean {path / BUNDLE}?" if BUNDLE in names else ""
            raise BundleError(f"no bundle at {path}: {MANIFEST} is missing{nearer}")
        contents = {name: map_file(folder, name) for name in sorted(names)}
    finally:
        os.close(folder)

    text = contents[MANIFEST].tobytes()
    manifest = Manifest.from_bytes(text)
    listed = manifest.files.keys()
    for name in sorted(names - listed - {MANIFEST, SIGNATURE}):
        raise BundleError(
            f"{name!r} is in the bundle but not in {MANIFEST}: remove it or export again"
        )

    needed = listed | required if trusted is None else listed | required | {SIGNATURE}
    for name in sorted(needed - names):
        raise BundleError(f"{name} is missing from the bundle: copy it again")

    if trusted is not None:
        check_signature(text, contents[SIGNATURE].tobytes(), trusted)

    for name, entry in manifest.files.items():
        if FileEntry.of(contents[name]) != entry:
            raise BundleError(
                f"{name}: other content than {MANIFEST} says; altered, or of another bundle"
            )

    return manifest, contents


def identify_folder(path: Path) -> tuple[int, int, int] | None:
    """Return device, inode and time of the last change of a folder, None if there is none."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None

    return status.st_dev, status.st_ino, status.st_mtime_ns


@dataclass(frozen=True, eq=False)
class Bundle:
    """The parts that answer requests. All were loaded together and never change."""

    path: Path
    manifest: Manifest
    schema: Schema
    user_tower: Tower
    item_tower: Tower
    index: ItemIndex  # holds the one copy of the item vectors, and knows unlisted items
    neighbours: Neighbours  # item-item weights; often none
    items: pa.Table  # N rows: `item_id` and the columns to show and filter by
    golden: bytes  # empty in a stage that has none yet
    segments: Segments | None = None  # of users; None where there are too few

    @property
    def vectors(self) -> Floats:
        """(N, W), read only."""
        return self.index.vectors

    @classmethod
    def load(
        cls,
        path: Path,
        n_threads: int = 1,
        trusted: Path | None = None,
        required: Set[str] = PUBLISHED,
    ) -> Bundle:
        """Load a bundle.

        Args:
            path: its folder.
            n_threads: threads of a tower.
            trusted: file of public keys, one of which must have signed the bundle.
            required: names of files that must be there; `ANSWERING` in a stage.

        Raises:
            BundleError: anything in the folder is missing, altered or does not fit the rest.
        """
        faiss.omp_set_num_threads(n_threads)
        manifest, contents = read_folder(path, required, trusted)
        return _build(path, manifest, contents, n_threads)


def _build(
    path: Path, manifest: Manifest, contents: Mapping[str, Content], n_threads: int
) -> Bundle:
    schema_text = contents[SCHEMA].tobytes()
    schema = _read(SCHEMA, lambda: Schema.from_json(schema_text.decode()))
    _read(SCHEMA, lambda: find_zone(schema.timezone))
    index = _read(INDEX, lambda: ItemIndex.from_bytes(contents[INDEX]))
    facts = manifest.facts
    if (
        manifest.space_id != compute_space_id(index.vectors, schema_text)
        or manifest.dim != index.vectors.shape[1]
        or manifest.dim < facts.popularity_dims
        or schema.data_until != facts.data_until
    ):
        raise BundleError(f"{MANIFEST}, {INDEX} and {SCHEMA} are not of one bundle")

    described = facts.index
    coarse = None
    if described is not None:
        content = contents.get(COARSE, np.empty(0, np.uint8))
        coarse = _read(COARSE, lambda: _read_coarse(content, index.vectors, described))
    decay = facts.neighbour_decay
    gain = facts.neighbour_context_gain
    rows = (contents[NEIGHBOUR_OFFSETS], contents[NEIGHBOURS], len(index))
    neighbours = _read(NEIGHBOURS, lambda: Neighbours.from_bytes(*rows, decay, gain))
    segments = None
    if SEGMENTS in contents:
        text = contents[SEGMENTS].tobytes()
        segments = _read(SEGMENTS, lambda: Segments.from_bytes(text, manifest.dim))

    user_tower = _read_tower(USER_TOWER, contents, manifest, n_threads)
    item_tower = _read_tower(ITEM_TOWER, contents, manifest, n_threads)
    items = read_items(contents[ITEMS], len(index), schema.item_id_type)
    is_hidden = None
    if IS_UNLISTED in items.column_names:
        is_hidden = _read_flags(items.column(IS_UNLISTED))
        items = items.drop_columns([IS_UNLISTED])
    index = ItemIndex(index.vectors, is_hidden, coarse)
    golden = contents[GOLDEN].tobytes() if GOLDEN in contents else b""
    return Bundle(
        path=path,
        manifest=manifest,
        schema=schema,
        user_tower=user_tower,
        item_tower=item_tower,
        index=index,
        neighbours=neighbours,
        items=items,
        golden=golden,
        segments=segments,
    )


def _read_flags(column: pa.ChunkedArray) -> Flags:
    if column.type != pa.bool_() or column.null_count:
        raise BundleError(f"{ITEMS}: '{IS_UNLISTED}' holds no flags; export again")
    return np.array(column.to_pylist(), np.bool_)


def _read(name: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except ValueError as error:  # SchemaError, too
        raise BundleError(f"{name} cannot be read: {error}") from error


def _read_coarse(content: Content, vectors: Floats, facts: IndexFacts) -> CoarseIndex:
    """Read the coarse index, and refuse one that finds less than it did at the export."""
    coarse = CoarseIndex.from_bytes(content, facts.n_probes)
    recall = measure_items(vectors, coarse)
    if len(coarse) != len(vectors) or recall < facts.recall_of_items - _RECALL_LOSS:
        raise ValueError(
            f"of {len(coarse)} items it finds {recall:.3f}; expected {facts.recall_of_items:.3f} "
            f"of {len(vectors)}"
        )

    return coarse


def _read_tower(
    name: str, contents: Mapping[str, Content], manifest: Manifest, n_threads: int
) -> Tower:
    tower = Tower(name, contents[name].tobytes(), n_threads)
    has_width = tower.width in (None, manifest.dim)
    if tower.space_id != manifest.space_id or not has_width:
        raise BundleError(
            f"{name} is of another space or width of vectors than {MANIFEST} says"
        )

    return tower


def compute_space_id(vectors: Floats, schema: bytes) -> str:
    """Name the space of item vectors (N, W) and the schema they were encoded by: 16 hex digits."""
    digest = hashlib.sha256(np.ascontiguousarray(vectors, dtype="<f4").data)
    digest.update(schema)
    return digest.hexdigest()[:16]


def read_space(folder: Path) -> tuple[str, int]:
    """Return the space and the width of the vectors in a staged folder."""
    vectors = ItemIndex.from_bytes(np.fromfile(folder / INDEX, dtype=np.uint8)).vectors
    return compute_space_id(vectors, (folder / SCHEMA).read_bytes()), vectors.shape[1]


def write_index(path: Path, vectors: Floats) -> None:
    """Write vectors (N, W) as FAISS's `IndexFlatIP`."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    # the writer of FAISS would not name an error of the disk
    write_file(path, faiss.serialize_index(index).data)


def write_items(items: pa.Table, path: Path) -> None:
    """Write the catalogue, a row per vector."""
    with name_file(path):
        pq.write_table(items, path, compression="zstd")


def read_items(content: Content, n_items: int, id_type: IdType) -> pa.Table:
    """Read the catalogue from the bytes of its file: a row per vector, each with its own id."""
    try:
        # read_table would import pandas
        items = pq.ParquetFile(pa.py_buffer(content)).read(use_threads=False)
        items.validate(full=True)  # texts may be no UTF-8
        ids = items.column("item_id")
    except (pa.ArrowException, OSError, KeyError) as error:
        raise BundleError(
            f"{ITEMS} is no Parquet file with item_id: {error}"
        ) from error

    is_distinct = not ids.null_count and len(ids.unique()) == len(ids) == n_items
    if not is_distinct or ids.type not in _ID_TYPES[id_type]:
        raise BundleError(
            f"{ITEMS} has {len(ids)} rows and item_id of type {ids.type}; "
            f"expected {n_items} rows, each with its own {id_type}"
        )

    return items
