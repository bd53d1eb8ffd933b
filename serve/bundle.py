"""A bundle in memory: one immutable folder, verified, opened and found to belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from serve.array_file import open_array
from serve.errors import BundleError, SchemaError
from serve.folder import Content, read_folder, read_steadily
from serve.golden import Answer, replay
from serve.index import ItemIndex
from serve.item_vectors import check_vectors
from serve.items import read_items
from serve.layout import (
    ANSWERING,
    GOLDEN,
    INDEX,
    ITEM_TOWER,
    ITEMS,
    MANIFEST,
    NEIGHBOUR_OFFSETS,
    NEIGHBOURS,
    PUBLISHED,
    SCHEMA,
    USER_TOWER,
    VECTORS,
)
from serve.manifest import Manifest, compute_space_id
from serve.neighbours import Neighbours
from serve.schema import Schema
from serve.threads import set_search_threads
from serve.top_k import Floats
from serve.tower import Arrays, Tower


@dataclass(frozen=True, eq=False)
class Bundle:
    """What answers requests. All parts were loaded together and never change."""

    path: Path
    manifest: Manifest
    schema: Schema
    user_tower: Tower
    item_tower: Tower
    vectors: Floats
    """(N, D), mapped from the verified file, read only."""
    neighbours: Neighbours
    """What items of a history add to the scores of others; often nothing."""
    items: pa.Table
    """N rows: `item_id` and the columns to show and filter by."""
    index: ItemIndex
    golden: bytes
    """Content of `golden.json`; empty in a stage that has none yet."""

    @classmethod
    def load(cls, path: Path, n_threads: int = 1) -> Bundle:
        """Load a published bundle.

        Args:
            path: the folder with `manifest.json`.
            n_threads: threads of a tower's run, and of searches in the whole process.

        Raises:
            BundleError: anything missing, altered or of another bundle; the message names the file.
        """
        return read_steadily(path, lambda folder: _load(folder, PUBLISHED, n_threads))

    @classmethod
    def load_staged(cls, path: Path, n_threads: int = 1) -> Bundle:
        """Load a sealed stage, which has no golden requests yet, as `load` does."""
        return read_steadily(path, lambda folder: _load(folder, ANSWERING, n_threads))

    def run_user_tower(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Run the user tower on named arrays; see `Tower.run`."""
        return self.user_tower.run(inputs)

    def run_item_tower(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Run the item tower on named arrays; see `Tower.run`."""
        return self.item_tower.run(inputs)


def verify(path: Path, answer_with: Callable[[Bundle], Answer]) -> list[str]:
    """Load a bundle and replay its golden requests.

    Args:
        path: the folder.
        answer_with: makes of a bundle what answers raw requests.

    Returns:
        Lines to say.

    Raises:
        BundleError: a check that failed; the message names the file.
    """
    bundle = Bundle.load(path)
    n_requests = replay(bundle.golden, answer_with(bundle))
    manifest = bundle.manifest
    n_bytes = sum(entry.size for entry in manifest.files.values())
    return [
        f"files: {len(manifest.files)} with {n_bytes} bytes as {MANIFEST} says",
        f"space_id: {manifest.space_id} in towers, vectors, index and schema",
        f"golden: {n_requests} requests answered as when exported",
        f"version: {manifest.version}",
    ]


def _load(path: Path, required: Iterable[str], n_threads: int) -> Bundle:
    set_search_threads(n_threads)
    manifest, contents = read_folder(path, required)
    schema = _read_schema(contents[SCHEMA])
    vectors = _read_vectors(contents[VECTORS], manifest)
    if compute_space_id(vectors, contents[SCHEMA].tobytes()) != manifest.space_id:
        raise BundleError(f"{VECTORS} and {SCHEMA} are not of space {manifest.space_id} as {MANIFEST} says")
    return Bundle(
        path=path,
        manifest=manifest,
        schema=schema,
        user_tower=_read_tower(USER_TOWER, contents, manifest, n_threads),
        item_tower=_read_tower(ITEM_TOWER, contents, manifest, n_threads),
        vectors=vectors,
        neighbours=_read_neighbours(contents, manifest, len(vectors)),
        items=read_items(contents[ITEMS], len(vectors), schema.item_id_type),
        index=ItemIndex.from_bytes(contents[INDEX], vectors),
        golden=contents[GOLDEN].tobytes() if GOLDEN in contents else b"",
    )


def _read_schema(content: Content) -> Schema:
    try:
        return Schema.from_json(content.tobytes().decode())
    except (SchemaError, UnicodeDecodeError) as error:
        raise BundleError(f"{SCHEMA} cannot be read: {error}") from error


def _read_vectors(content: Content, manifest: Manifest) -> Floats:
    """View the mapped file as the array it holds; nothing is copied."""
    try:
        vectors: Floats = open_array(content, np.dtype(np.float32), n_axes=2)
        check_vectors(vectors)
    except ValueError as error:
        raise BundleError(f"{VECTORS} cannot be read: {error}") from error
    if vectors.shape[1] != manifest.dim:
        raise BundleError(f"{VECTORS} has {vectors.shape[1]} columns; {MANIFEST} says {manifest.dim}")
    return vectors


def _read_neighbours(contents: Mapping[str, Content], manifest: Manifest, n_items: int) -> Neighbours:
    try:
        files = contents[NEIGHBOUR_OFFSETS], contents[NEIGHBOURS]
        return Neighbours.from_bytes(*files, n_items, manifest.facts.neighbour_decay)
    except ValueError as error:
        raise BundleError(f"{NEIGHBOURS} and {NEIGHBOUR_OFFSETS} cannot be read: {error}") from error


def _read_tower(name: str, contents: Mapping[str, Content], manifest: Manifest, n_threads: int) -> Tower:
    tower = Tower(name, contents[name].tobytes(), n_threads)
    if tower.space_id != manifest.space_id:
        raise BundleError(f"{name} is of space {tower.space_id}; {MANIFEST} says {manifest.space_id}")
    widths = {None, manifest.dim}
    if name == ITEM_TOWER:  # it may leave the popularity columns to whoever knows the time
        widths.add(manifest.dim - manifest.facts.popularity_dims)
    if tower.width not in widths:
        raise BundleError(f"{name} gives vectors of width {tower.width}; {MANIFEST} says {manifest.dim}")
    return tower
