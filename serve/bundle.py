"""A bundle: one immutable folder, verified by hash before anything in it is used, and its golden requests.

Each file is opened once, without following links, and mapped: what is hashed is what is used. The manifest holds no
time, duration, host or path: the same seed gives the same version.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve.arrays import Floats
from serve.clock import find_zone
from serve.errors import BundleError, SchemaError
from serve.files import name_file, sync_folder, write_file
from serve.index import Content, ItemIndex, Neighbours
from serve.recommendations import Segments
from serve.requests import check_seconds
from serve.schema import IdType, Schema, Similarity, check_record
from serve.tower import Tower

T = TypeVar("T")

# Files of a run and of its bundle: their names are part of the contract.
BUNDLE = "bundle"
PROFILES = "profiles"
STATE = "state"
LOGS = "logs"
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
ITEMS = "items.parquet"
NEIGHBOURS = "item_neighbours.npy"
NEIGHBOUR_OFFSETS = "item_neighbour_offsets.npy"
SEGMENTS = "segments.json"

# Files that answering needs: a stage with these can be evaluated.
ANSWERING = frozenset(
    {SCHEMA, USER_TOWER, ITEM_TOWER, NEIGHBOURS, NEIGHBOUR_OFFSETS, INDEX, ITEMS}
)
PUBLISHED = ANSWERING | {
    GOLDEN,
    MODEL_CARD,
}  # files of a published bundle beside its manifest
ALLOWED = PUBLISHED | {SEGMENTS}  # any other is refused
FORMAT = (
    4  # formats up to 3 held the vectors twice: `item_vectors.npy` beside the index
)
MAX_BYTES = 1 << 20  # of a manifest

_SIGNATURE = re.compile(
    rb"ed25519 ([0-9a-f]{16}) ([0-9a-f]{128})\n"
)  # the key's id and the signature
_PUBLIC_KEY = re.compile(
    rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL
)
_ID_TYPES = {"integer": (pa.int64(),), "string": (pa.string(), pa.large_string())}


@dataclass(frozen=True)
class Facts:
    """Facts that only the run that made a bundle knows."""

    similarity: Similarity
    popularity_dims: int  # last columns of the item vectors that are popularity
    index_recall: float  # share of the exact best items that the index finds
    counts: Mapping[str, int]
    libraries: Mapping[str, str]  # name -> version
    data_until: int  # UTC seconds just after the last training event
    config: Mapping[str, Any]  # the run's configuration, without paths of the machine
    neighbour_decay: float
    neighbour_context_gain: float = 0.0  # earlier bundles have none


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`; its facts stand there beside the other keys."""

    facts: Facts
    space_id: str  # towers, index and schema of one bundle share it
    files: Mapping[str, FileEntry]
    dim: int  # columns of the item vectors, popularity included
    metrics: Mapping[str, Any]
    sha256: str  # hash of the canonical text without this key

    @property
    def version(self) -> str:
        return self.sha256[:12]

    @classmethod
    def create(
        cls,
        facts: Facts,
        space_id: str,
        dim: int,
        files: Mapping[str, FileEntry],
        metrics: Mapping[str, Any],
    ) -> Manifest:
        """Put a manifest together and hash it."""
        bare = cls(facts, space_id, files, dim, metrics, sha256="")
        return replace(bare, sha256=_hash(bare._to_json()))

    def _to_json(self) -> dict[str, Any]:
        content = asdict(self)
        facts: dict[str, Any] = content.pop("facts")
        return facts | content | {"format": FORMAT}

    def to_bytes(self) -> bytes:
        """Write the canonical text."""
        return _render(self._to_json())

    @classmethod
    def from_bytes(cls, text: bytes) -> Manifest:
        """Read the text that `to_bytes` wrote, and nothing else."""
        try:
            raw = json.loads(text) if len(text) <= MAX_BYTES else None
            if not isinstance(raw, dict) or "files" not in raw:
                raise BundleError(
                    f"{MANIFEST} is not that of a bundle: it names no files"
                )
            if raw.get("format") != FORMAT:
                raise BundleError(
                    f"{MANIFEST}: format is {raw.get('format')!r}; expected {FORMAT}: train again"
                )
            if _render(raw) != text or _hash(raw) != raw["sha256"]:
                raise BundleError(
                    f"{MANIFEST} was altered after it was written: its hash differs; export again"
                )
            del raw["format"]
            facts = Facts(
                **{
                    field.name: raw.pop(field.name)
                    for field in fields(Facts)
                    if field.name in raw
                }
            )
            files = {
                name: FileEntry(**entry) for name, entry in raw.pop("files").items()
            }
            if not files.keys() <= ALLOWED:
                raise ValueError(f"it lists {min(files.keys() - ALLOWED)!r}")
            manifest = cls(facts=facts, files=files, **raw)
            check_record(facts)
            check_record(manifest)
            check_seconds(facts.data_until, "data_until")
            return manifest
        except BundleError:
            raise
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BundleError(
                f"{MANIFEST} is no manifest of format {FORMAT}: {error}"
            ) from error


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(
        _render({name: value for name, value in content.items() if name != "sha256"})
    ).hexdigest()


def _render(content: Mapping[str, Any]) -> bytes:
    return (
        json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
    ).encode()


# ---- the folder


def read_folder(
    path: Path, required: Iterable[str], trusted: Path | None = None
) -> tuple[Manifest, dict[str, Content]]:
    """Map and verify all files of a bundle, the `required` among them, and that a `trusted` key signed its manifest."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        names = set(os.listdir(folder))
    except OSError as error:
        raise BundleError(
            f"no bundle at {path}: {error.strerror}; give the folder with {MANIFEST}"
        ) from error
    try:
        if MANIFEST not in names:
            nearer = f"; did you mean {path / BUNDLE}?" if BUNDLE in names else ""
            raise BundleError(f"no bundle at {path}: {MANIFEST} is missing{nearer}")
        manifest = Manifest.from_bytes(
            _map_file(folder, MANIFEST)[: MAX_BYTES + 1].tobytes()
        )
        for name in sorted(names - manifest.files.keys() - {MANIFEST, SIGNATURE}):
            raise BundleError(
                f"{name!r} is in the bundle but not in {MANIFEST}: remove it or export again"
            )
        for name in sorted((manifest.files.keys() | set(required)) - names):
            raise BundleError(f"{name} is missing from the bundle: copy it again")
        contents = {name: _map_file(folder, name) for name in sorted(manifest.files)}
        signature = (
            {SIGNATURE: _map_file(folder, SIGNATURE)} if SIGNATURE in names else {}
        )
    finally:
        os.close(folder)
    if trusted is not None:
        _check_signature(
            manifest,
            b"".join(one[:MAX_BYTES].tobytes() for one in signature.values()),
            trusted,
        )
    for name, content in contents.items():
        if (
            FileEntry(hashlib.sha256(content.data).hexdigest(), content.size)
            != manifest.files[name]
        ):
            raise BundleError(
                f"{name}: other content than {MANIFEST} says; altered, or of another bundle"
            )
    return manifest, contents | signature


def read_steadily(path: Path, read: Callable[[Path], T]) -> T:
    """Read a folder; again where a publisher put a new one in its place meanwhile and removed the old one."""
    while True:
        folder = identify_folder(path)
        try:
            return read(path)
        except BundleError:
            if identify_folder(path) == folder:
                raise


def identify_folder(path: Path) -> tuple[int, int, int] | None:
    """Return device, inode and time of the last change of the folder at a path, None if there is none."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def hash_file(path: Path) -> FileEntry:
    """Hash a file for the manifest."""
    with path.open("rb") as file:
        return FileEntry(hashlib.file_digest(file, "sha256").hexdigest(), file.tell())


def _map_file(folder: int, name: str) -> Content:
    """Map a regular file that has no other name, so that nobody changes it from elsewhere."""
    try:
        descriptor = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder
        )
    except OSError as error:
        raise BundleError(
            f"{name} cannot be read: {error.strerror}; links are refused"
        ) from error
    try:
        status = os.fstat(descriptor)
        if (
            not stat.S_ISREG(status.st_mode)
            or status.st_nlink != 1
            or not status.st_size
        ):
            raise BundleError(
                f"{name} is empty or no plain file with one name: copy the bundle without links"
            )
        return np.frombuffer(
            mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), dtype=np.uint8
        )
    finally:
        os.close(descriptor)


# ---- signatures: Ed25519 over the text of the manifest, which holds the hashes of all other files


def sign(path: Path, key_file: Path) -> str:
    """Sign the bundle in a folder with a private key in PEM, in place of a signature before; return the key's id."""
    manifest, _ = read_folder(path, PUBLISHED)
    key_id, key = _read_key(key_file.read_bytes(), key_file, is_private=True)
    signature = key.sign(manifest.to_bytes()).hex()
    aside = path.absolute().with_name(
        f".{path.absolute().name}-{SIGNATURE}"
    )  # a reader finds no other file in it
    write_file(aside, f"ed25519 {key_id} {signature}\n".encode())
    os.replace(aside, path / SIGNATURE)
    sync_folder(path)
    return key_id


def _check_signature(manifest: Manifest, signature: bytes, trusted: Path) -> None:
    keys = dict(
        _read_key(pem, trusted) for pem in _PUBLIC_KEY.findall(trusted.read_bytes())
    )
    found = _SIGNATURE.fullmatch(signature)
    if found is None or found[1].decode() not in keys:
        by = (
            "missing or damaged" if found is None else f"of the key {found[1].decode()}"
        )
        raise BundleError(
            f"{SIGNATURE} is {by}; {trusted} has {', '.join(keys) or 'no public key in PEM'}"
        )
    from cryptography.exceptions import InvalidSignature

    try:
        keys[found[1].decode()].verify(
            bytes.fromhex(found[2].decode()), manifest.to_bytes()
        )
    except InvalidSignature as error:
        raise BundleError(
            f"{SIGNATURE} is not of this {MANIFEST}: it was changed after it was signed"
        ) from error


def _read_key(pem: bytes, where: Path, is_private: bool = False) -> tuple[str, Any]:
    """Read an Ed25519 key; return its id, the beginning of the hash of the public one, and the key."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import (
            Ed25519PrivateKey,
            Ed25519PublicKey,
        )
        from cryptography.hazmat.primitives.serialization import (
            load_pem_private_key,
            load_pem_public_key,
        )
    except ModuleNotFoundError as error:
        raise BundleError(
            "signatures need cryptography: pip install cryptography"
        ) from error
    try:
        key = (
            load_pem_private_key(pem, None) if is_private else load_pem_public_key(pem)
        )
        if not isinstance(key, (Ed25519PrivateKey, Ed25519PublicKey)):
            raise TypeError("it is of another kind")
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BundleError(
            f"{where} is no key as `openssl genpkey -algorithm ed25519` gives it: {error}"
        ) from error
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16], key


# ---- the bundle in memory


@dataclass(frozen=True, eq=False)
class Bundle:
    """The parts that answer requests. All were loaded together and never change."""

    path: Path
    manifest: Manifest
    schema: Schema
    user_tower: Tower
    item_tower: Tower
    index: ItemIndex  # holds the one copy of the item vectors
    neighbours: Neighbours  # item-item weights; often none
    items: pa.Table  # n rows: `item_id` and the columns to show and filter by
    golden: bytes  # empty in a stage that has none yet
    segments: Segments | None = None  # of users; None where there are too few

    @property
    def vectors(self) -> Floats:
        """(N, W), read only."""
        return self.index.vectors

    @classmethod
    def load(
        cls, path: Path, n_threads: int = 1, trusted: Path | None = None
    ) -> Bundle:
        """Load a published bundle, signed by a key of `trusted` if that is given; towers run in `n_threads`."""
        return read_steadily(
            path, lambda folder: _load(folder, PUBLISHED, n_threads, trusted)
        )

    @classmethod
    def load_staged(cls, path: Path, n_threads: int = 1) -> Bundle:
        """Load a sealed stage, which has no golden requests yet, as `load` does."""
        return read_steadily(path, lambda folder: _load(folder, ANSWERING, n_threads))


def _load(
    path: Path, required: Iterable[str], n_threads: int, trusted: Path | None = None
) -> Bundle:
    faiss.omp_set_num_threads(n_threads)
    manifest, contents = read_folder(path, required, trusted)
    schema = _read(
        SCHEMA, lambda: Schema.from_json(contents[SCHEMA].tobytes().decode())
    )
    _read(SCHEMA, lambda: find_zone(schema.timezone))
    index = _read(INDEX, lambda: ItemIndex.from_bytes(contents[INDEX]))
    if compute_space_id(index.vectors, contents[SCHEMA].tobytes()) != manifest.space_id:
        raise BundleError(
            f"{INDEX} and {SCHEMA} are not of space {manifest.space_id} as {MANIFEST} says"
        )
    width = index.vectors.shape[1]
    facts = manifest.facts
    if (manifest.dim, facts.data_until) != (
        width,
        schema.data_until,
    ) or facts.popularity_dims > width:
        raise BundleError(
            f"{MANIFEST}: its vectors' width or its last day is not that of {INDEX} and {SCHEMA}"
        )
    weights = (contents[NEIGHBOUR_OFFSETS], contents[NEIGHBOURS])
    segments = contents.get(SEGMENTS)
    of_events = facts.neighbour_decay, facts.neighbour_context_gain
    return Bundle(
        path=path,
        manifest=manifest,
        schema=schema,
        user_tower=_read_tower(USER_TOWER, contents, manifest, n_threads),
        item_tower=_read_tower(ITEM_TOWER, contents, manifest, n_threads),
        index=index,
        neighbours=_read(
            NEIGHBOURS, lambda: Neighbours.from_bytes(*weights, len(index), *of_events)
        ),
        items=read_items(contents[ITEMS], len(index), schema.item_id_type),
        golden=contents[GOLDEN].tobytes() if GOLDEN in contents else b"",
        segments=_read(SEGMENTS, lambda: Segments.from_bytes(segments.tobytes(), width))
        if segments is not None
        else None,
    )


def _read(name: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except (SchemaError, ValueError) as error:
        raise BundleError(f"{name} cannot be read: {error}") from error


def _read_tower(
    name: str, contents: Mapping[str, Content], manifest: Manifest, n_threads: int
) -> Tower:
    tower = Tower(name, contents[name].tobytes(), n_threads)
    if tower.space_id != manifest.space_id:
        raise BundleError(
            f"{name} is of space {tower.space_id}; {MANIFEST} says {manifest.space_id}"
        )
    if tower.width not in (None, manifest.dim):
        raise BundleError(
            f"{name} gives vectors of width {tower.width}; {MANIFEST} says {manifest.dim}"
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


def write_items(items: pa.Table, path: Path) -> None:
    """Write the catalogue, a row per vector."""
    with name_file(path):
        pq.write_table(items, path, compression="zstd")


def read_items(content: Content, n_items: int, id_type: IdType) -> pa.Table:
    """Read the catalogue from the bytes of its file: a row per vector, each with an id of its own."""
    try:
        items = pq.ParquetFile(pa.py_buffer(content)).read(
            use_threads=False
        )  # read_table would import pandas
        items.validate(full=True)  # texts may be no UTF-8
    except (pa.ArrowException, OSError) as error:
        raise BundleError(f"{ITEMS} is no Parquet file: {error}") from error
    names = items.column_names
    if (
        items.num_rows != n_items
        or "item_id" not in names
        or len(set(names)) < len(names)
    ):
        raise BundleError(
            f"{ITEMS} has {items.num_rows} rows of {names}; expected {n_items}, with one 'item_id'"
        )
    ids = items.column("item_id")
    if (
        ids.type not in _ID_TYPES[id_type]
        or ids.null_count
        or len(ids.unique()) != n_items
    ):
        raise BundleError(
            f"{ITEMS}: item_id has missing or equal values, or is {ids.type} in place of {id_type}"
        )
    return items


# ---- golden requests: synthetic ones, with the answers that they had when the bundle was exported


def write_index(path: Path, vectors: Floats) -> None:
    """Write vectors (N, W) as FAISS's `IndexFlatIP`."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    write_file(
        path, faiss.serialize_index(index).data
    )  # the writer of FAISS names no error of the disk
