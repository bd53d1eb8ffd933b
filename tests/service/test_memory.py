"""Bundles whose files are small and whose content is not: what a service lets them take."""

import os
import re
import resource
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serve.bundle import ITEMS, MANIFEST, USER_TOWER, FileEntry, Manifest
from serve.files import place_folder
from tests.http.services import NOW, TOKEN, publish_served
from tests.linear_bundle import SHOP, N, publish_linear
from tests.served import JSON, serving
from tests.tiny_onnx import FLOAT, INT64, merge_graph, node, value

pytestmark = pytest.mark.service
REQUEST = NOW | {"history": [{"item_id": "i107"}], "k": 5}
AUTHORISED = JSON | {"authorization": f"Bearer {TOKEN}"}
RELOADING = {"BASCULE_RELOAD_TOKEN": TOKEN}
N_NUMBERS = 2_500_000_000  # of a constant: 10 GB
TEXT_BYTES = 60_000_000  # of a text that all items share
MEBIBYTE = 1 << 20


def swell_tower(bundle):
    """Let the user tower have a constant of 10 GB, in a hundred bytes."""
    nodes = [
        node("ConstantOfShape", ["how_many"], "zeros"),
        node("ReduceMax", ["zeros"], "largest"),
    ]
    sizes = {"how_many": np.array([N_NUMBERS])}
    outputs = [value("largest", FLOAT, [1])]
    path = bundle / USER_TOWER
    path.write_bytes(merge_graph(path.read_bytes(), nodes, outputs, sizes, INT64))


def swell_items(bundle):
    """Let all items have one long text, which the file holds once and compressed."""
    items = pq.read_table(bundle / ITEMS)
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * N), pa.array(["a" * TEXT_BYTES]))
    column = items.schema.get_field_index("title")
    items = items.set_column(column, "title", texts)
    pq.write_table(items, bundle / ITEMS, compression="zstd", store_schema=False)


def seal(bundle, name):
    """Let the manifest list a file as it is now."""
    manifest = Manifest.from_bytes((bundle / MANIFEST).read_bytes())
    entry = FileEntry.of(np.fromfile(bundle / name, np.uint8))
    sealed = replace(manifest, files={**manifest.files, name: entry}).seal()
    (bundle / MANIFEST).write_bytes(sealed.to_bytes())


@contextmanager
def limited(n_bytes):
    """Let processes that begin meanwhile have no more memory."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


def peak_memory(server):
    """Return the most bytes that a process ever had in memory."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


@pytest.mark.parametrize(
    ("swell", "name", "own_limit"),
    [(swell_tower, USER_TOWER, resource.RLIM_INFINITY), (swell_items, ITEMS, 1800 * MEBIBYTE)],
    ids=["a constant, as a service limits itself", "a column, by ulimit -d"],
)
def test_a_bundle_that_takes_more_than_its_files_explain_is_refused(
    tmp_path, swell, name, own_limit
):
    bundle = publish_served(tmp_path / "run", SHOP)
    hostile = publish_linear(tmp_path / "hostile", SHOP, seed=8)
    swell(hostile)
    seal(hostile, name)
    assert sum(map(os.path.getsize, hostile.iterdir())) < MEBIBYTE
    with limited(own_limit), serving("--bundle", bundle, variables=RELOADING) as server:
        before = server.ask("POST", "/v1/recommend", REQUEST).json
        place_folder(hostile, bundle)
        refused = server.ask("POST", "/v1/reload", headers=AUTHORISED)
        assert refused.status == 409
        assert name in refused.content.decode()
        assert server.ask("POST", "/v1/recommend", REQUEST).json["answers"] == before["answers"]
        assert peak_memory(server) < 1500 * MEBIBYTE
        assert server.end() == 0
        assert "Traceback" not in server.process.stderr.read()
