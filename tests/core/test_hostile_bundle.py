"""A bundle that somebody changed and hashed again is refused by what is in it, in one line."""

import hashlib
import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bascule.commands import main
from serve.bundle import compute_space_id, write_index
from serve.errors import BundleError
from serve.index import ENTRY, ItemIndex
from serve.recommender import Recommender
from tests.linear_bundle import SHOP, N, P, W, publish_linear, vectors_of

SEED = 3
DEEP = b"[" * 200_000
FAR = 2**63 - 1  # seconds of the year 292277026596
TOWERS = ("user_tower.onnx", "item_tower.onnx")


def write(path, content):
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def hash_again(bundle, **changes):
    """Write a manifest, and a space where it can be read, that fit the files as they are now."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    try:
        vectors = ItemIndex.from_bytes(np.fromfile(bundle / "items.faiss", np.uint8)).vectors
        space = compute_space_id(vectors, (bundle / "schema.json").read_bytes())
    except ValueError:
        space = manifest["space_id"]
    for name in TOWERS:
        content = (bundle / name).read_bytes()
        (bundle / name).write_bytes(content.replace(manifest["space_id"].encode(), space.encode()))
    paths = [path for path in bundle.iterdir() if path.stem != "manifest"]
    contents = {path.name: path.read_bytes() for path in paths}
    files = {
        name: {"sha256": hashlib.sha256(one).hexdigest(), "size": len(one)}
        for name, one in contents.items()
    }
    manifest |= {"files": files, "space_id": space} | changes
    del manifest["sha256"]
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    write(
        bundle / "manifest.json",
        manifest | {"sha256": hashlib.sha256(text.encode()).hexdigest()},
    )


def of_manifest(**changes):
    return lambda bundle: hash_again(bundle, **changes)


def of_schema(side=None, place=0, **changes):
    def mutate(bundle):
        schema = json.loads((bundle / "schema.json").read_bytes())
        (schema if side is None else schema[side][place]).update(changes)
        write(bundle / "schema.json", schema)
        hash_again(bundle)

    return mutate


def of_file(name, content):
    def mutate(bundle):
        (bundle / name).write_bytes(content)
        hash_again(bundle)

    return mutate


def of_items(column, values):
    def mutate(bundle):
        table = pq.ParquetFile(bundle / "items.parquet").read()
        place = table.column_names.index(column)
        pq.write_table(
            table.set_column(place, column, values(table.column(column))),
            bundle / "items.parquet",
        )
        hash_again(bundle)

    return mutate


def of_more_items(column, values):
    def mutate(bundle):
        table = pq.ParquetFile(bundle / "items.parquet").read()
        pq.write_table(table.append_column(column, values), bundle / "items.parquet")
        hash_again(bundle)

    return mutate


def of_vectors(vectors):
    def mutate(bundle):
        write_index(bundle / "items.faiss", vectors)
        hash_again(bundle)

    return mutate


def of_golden(**changes):
    def mutate(bundle):
        entries = json.loads((bundle / "golden.json").read_bytes())
        write(bundle / "golden.json", [entry | changes for entry in entries])
        hash_again(bundle)

    return mutate


def save(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


OFFSETS, ENTRIES = "item_neighbour_offsets.npy", "item_neighbours.npy"
ZEROS = np.zeros(N + 1, "<i8")
NOT_FINITE = vectors_of(SEED) * np.where(np.arange(W) == 2, np.nan, 1).astype(np.float32)
NO_TEXTS = pa.array([bytes([200 + row]) for row in range(N)])
MUTATIONS = {
    "a manifest of the last second": of_manifest(data_until=FAR),
    "a manifest whose last second is a text": of_manifest(data_until="now"),
    "a manifest of another last second": of_manifest(data_until=5),
    "a width that is a text": of_manifest(dim="10"),
    "a negative number of popularity columns": of_manifest(popularity_dims=-1),
    "a decay that is a text": of_manifest(neighbour_decay="0"),
    "metrics that are a list": of_manifest(metrics=[1]),
    "a deep schema": of_file("schema.json", DEEP),
    "a schema of the last second": of_schema(data_until=FAR),
    "a negative history": of_schema(history_length=-1),
    "a negative gap": of_schema(longest_gap=-1),
    "a huge memory": of_schema(memory_length=10**30),
    "a scale of 0": of_schema(weight_scale=0),
    "a mean that is no number": of_schema("user_features", 1, mean=float("nan")),
    "a zone that is a path": of_schema(timezone="../../etc/passwd"),
    "an id of another type": of_schema(user_id_type="float"),
    "a huge cell": of_schema("item_features", 0, kind="multi_categorical", width=10**9),
    "a vocabulary of lists": of_schema("user_features", 0, vocabulary=[["f"], ["m"]]),
    "two features of one name": of_schema("user_features", 0, name="income"),
    "vectors that are not finite": of_vectors(NOT_FINITE),
    "vectors wider than the towers'": of_vectors(np.repeat(vectors_of(SEED), 2, axis=1)),
    "vectors narrower than the towers'": of_vectors(np.ascontiguousarray(vectors_of(SEED)[:, : W - 1])),
    "offsets before the first entry": of_file(OFFSETS, save(ZEROS - 5)),
    "offsets that are fractions": of_file(OFFSETS, save(ZEROS.astype(float))),
    "an array of 72 TiB": of_file(OFFSETS, save(ZEROS).replace(b"(24,)", b"(9999999999999,)")),
    "an array described by brackets": of_file(OFFSETS, save(ZEROS)[:10] + b"(" * 118 + bytes(8 * (N + 1))),
    "a neighbour that is no item": of_file(ENTRIES, save(np.array([(N, 1.0)], ENTRY))),
    "an endless weight": of_file(ENTRIES, save(np.array([(0, 3e38)], ENTRY))),
    "permuted ids": of_items("item_id", lambda ids: ids.take(pa.array([*range(1, N), 0]))),
    "ids that are no UTF-8": of_items("item_id", lambda _: NO_TEXTS.view("string")),
    "rates that are texts": of_items("repeat_rate", lambda rates: pa.array(["x"] * N)),
    "rates that are no numbers": of_items("repeat_rate", lambda rates: pa.array([np.nan] * N, pa.float32())),
    "unlisted items that are texts": of_more_items("is_unlisted", pa.array(["false"] * N)),
    "unlisted items that are unknown": of_more_items("is_unlisted", pa.array([None] * N, pa.bool_())),
    "deep golden requests": of_file("golden.json", DEEP),
    "golden requests that are numbers": of_file("golden.json", b"[5]\n"),
    "endless golden scores": of_golden(scores=[float("inf")] * 8),
    "golden lists of lists": of_golden(item_ids=[[1]] * 8),
    "a golden request of another form": of_golden(request={"history": [[]]}),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return publish_linear(tmp_path_factory.mktemp("good"), SHOP, SEED)


@pytest.fixture
def bundle(good, tmp_path):
    return shutil.copytree(good, tmp_path / "bundle")


def test_a_bundle_that_was_only_hashed_again_is_the_same_one(good, bundle):
    hash_again(bundle, popularity_dims=P)
    assert Recommender.load(bundle).version == Recommender.load(good).version
    hash_again(bundle, index_recall=1.0)  # as earlier bundles have it
    earlier = Recommender.load(bundle)
    assert earlier.version == json.loads((bundle / "manifest.json").read_bytes())["sha256"][:12]
    assert earlier.bundle.manifest.facts == Recommender.load(good).bundle.manifest.facts


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_cannot_be_is_refused_in_one_line(bundle, name, capsys):
    MUTATIONS[name](bundle)
    with pytest.raises(BundleError):
        Recommender.load(bundle)
    assert main(["verify", "--bundle", str(bundle)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert len(line) < 1000


@pytest.mark.parametrize(
    "metrics", [{"test": [1]}, {"test": {"bascule": {"all": {"NDCG@20": "x"}}}}]
)
def test_a_registry_with_a_hostile_version_can_be_listed(bundle, tmp_path, capsys, metrics):
    hash_again(bundle, metrics=metrics)
    bundle.rename(tmp_path / "0123456789ab")
    assert main(["list", "--registry", str(tmp_path)]) == 0
    assert "damaged" in capsys.readouterr().out
