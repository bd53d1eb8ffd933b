"""The files of a run and of its bundle: their names are part of the contract."""

from __future__ import annotations

BUNDLE = "bundle"
"""Folder of a run's directory that holds the published bundle."""
PROFILES = "profiles"
"""Folder beside a bundle that holds the profiles of its users."""
STATE = "state"
"""Folder beside a bundle that holds what changes while it serves."""
STATE_FILE = "state.db"
ITEMS_FILE = "items.db"
METRICS = "metrics.json"
REPORT = "report.html"
CONFIG = "config.yaml"
"""What a run was told, with nothing left open."""
REJECTS = "rejects.parquet"
LOGS, CURVES = "logs", "metrics.csv"
"""Folder with one for each training, and the file in that."""

CURRENT, HISTORY = "CURRENT", "HISTORY"
"""Of a registry: the version that is to be served, and those before it."""

MANIFEST = "manifest.json"
SCHEMA = "schema.json"
USER_TOWER = "user_tower.onnx"
ITEM_TOWER = "item_tower.onnx"
VECTORS = "item_vectors.npy"
NEIGHBOURS = "item_neighbours.npy"
NEIGHBOUR_OFFSETS = "item_neighbour_offsets.npy"
INDEX = "items.faiss"
ITEMS = "items.parquet"
GOLDEN = "golden.json"
MODEL_CARD = "MODEL_CARD.md"

ANSWERING = frozenset({SCHEMA, USER_TOWER, ITEM_TOWER, VECTORS, NEIGHBOURS, NEIGHBOUR_OFFSETS, INDEX, ITEMS})
"""What answering a request needs: a stage with these can be evaluated."""
PUBLISHED = ANSWERING | {GOLDEN, MODEL_CARD}
"""What a published bundle holds beside its manifest; any other file is refused."""
