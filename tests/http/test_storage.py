"""Tables, bundles and versions on object storage, here one in memory."""

import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datamodules.config import Column, TableConfig
from datamodules.sources import read_files
from fsspec.implementations.memory import MemoryFileSystem
from serve.bundle import CURRENT, MANIFEST, Bundle
from serve.errors import BundleError, SchemaError
from service.registry import Registry, publish_version, rollback
from service.remote.storage import fetch_bundle, pull, push

import bascule

URL = "s3://shop/registry"
ITEMS = (Column("item_id", "item_id", "id", "asked"),)


class FakeS3(MemoryFileSystem):
    """The part of S3 that is needed."""

    protocol = ("s3", "s3a")
    broken = None  # name that cannot be written

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("s3://", "memory://"))

    def break_off(self, path):
        if self.broken and path.endswith(self.broken):
            raise ConnectionResetError("killed")

    def cat_file(self, path, **options):
        self.break_off(path)
        return super().cat_file(path, **options)

    def pipe_file(self, path, value, **options):
        self.break_off(path)
        super().pipe_file(path, value, **options)

    def put_file(self, lpath, rpath, **options):
        self.break_off(rpath)
        super().put_file(lpath, rpath, **options)


@pytest.fixture
def storage(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "s3", FakeS3)
    monkeypatch.setenv("BASCULE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(FakeS3, "store", {})
    monkeypatch.setattr(FakeS3, "pseudo_dirs", [""])
    return FakeS3()


@pytest.fixture
def registry(tmp_path, published):
    opened = Registry(tmp_path / "registry")
    publish_version(opened, published[1], is_activated=True)
    return opened


def upload(storage, bundle, path):
    for file in bundle.iterdir():
        storage.put_file(str(file), f"{path}/{file.name}")


def test_the_files_of_a_pattern_are_read_in_their_order_and_copied_once(storage, tmp_path):
    for number in (2, 1):
        pq.write_table(pa.table({"item_id": [number, 10 * number]}), tmp_path / "part")
        storage.put_file(str(tmp_path / "part"), f"shop/events/{number}.parquet")
    table = TableConfig(path="s3://shop/events/*.parquet")
    assert read_files("data.items.path", table, ITEMS).frame["item_id"].tolist() == [1, 10, 2, 20]
    copies = {path: path.stat() for path in (tmp_path / "cache").rglob("*.parquet")}
    assert len(copies) == 2

    pq.write_table(pa.table({"item_id": [5]}), tmp_path / "part")
    storage.put_file(str(tmp_path / "part"), "shop/events/2.parquet")
    assert read_files("data.items.path", table, ITEMS).frame["item_id"].tolist() == [1, 10, 5]
    assert all(path.stat() == before for path, before in copies.items())


@pytest.mark.parametrize("url", ["s3://shop/none/*.csv", "s3://shop/none.csv", "nowhere://a/b.csv"])
def test_what_is_not_there_is_one_line_that_names_the_setting(storage, url):
    with pytest.raises(SchemaError, match=r"^data\.items\.path: [^\n]+$"):
        read_files("data.items.path", TableConfig(path=url), ITEMS)


def test_a_bundle_at_a_url_answers_as_the_one_that_was_copied(storage, published):
    upload(storage, published[1], "shop/bundle")
    loaded = bascule.load("s3://shop/bundle")
    assert loaded.served.version == Bundle.load(published[1]).manifest.version
    storage.get_file = None  # what lies here is not fetched again
    assert fetch_bundle("s3://shop/bundle") == loaded.path


@pytest.mark.parametrize("name", ["items.faiss", "user_tower.onnx", MANIFEST])
def test_a_truncated_object_is_refused_until_it_is_whole(storage, published, name):
    upload(storage, published[1], "shop/bundle")
    whole = storage.cat_file(f"shop/bundle/{name}")
    storage.pipe_file(f"shop/bundle/{name}", whole[:-7])
    with pytest.raises(BundleError):
        bascule.load("s3://shop/bundle")
    storage.pipe_file(f"shop/bundle/{name}", whole)
    assert bascule.load("s3://shop/bundle").served.version


def test_versions_are_pushed_pulled_and_taken_back(
    storage, registry, published, versions, tmp_path
):
    there = Registry(tmp_path / "there")
    assert push(registry, URL) == versions[1]
    pull(there, URL)
    assert there.current() == versions[1]
    pull(there, URL)
    assert there.past() == []

    publish_version(registry, published[2], is_activated=True)
    push(registry, URL)
    pull(there, URL)
    assert there.current() == versions[2]

    rollback(registry)
    push(registry, URL)
    pull(there, URL)
    assert there.current() == versions[1]
    assert Bundle.load(there.folder(versions[2])).manifest.version == versions[2]


@pytest.mark.parametrize("name", ["items.faiss", MANIFEST, CURRENT])
def test_an_upload_that_is_killed_leaves_the_old_version_current(
    storage, registry, published, versions, tmp_path, monkeypatch, name
):
    push(registry, URL)
    publish_version(registry, published[2], is_activated=True)
    with monkeypatch.context() as patch:
        patch.setattr(FakeS3, "broken", name)
        with pytest.raises(OSError, match=URL):
            push(registry, URL)
    there = Registry(tmp_path / "there")
    pull(there, URL)
    assert there.current() == versions[1]

    push(registry, URL)
    pull(there, URL)
    assert there.current() == versions[2]


def test_a_version_under_the_name_of_another_is_refused(storage, registry, published, versions):
    push(registry, URL)
    for name in storage.ls(f"shop/registry/{versions[1]}", detail=False):
        storage.rm(name)
    upload(storage, published[2], f"shop/registry/{versions[1]}")
    there = Registry(registry.path.parent / "there")
    with pytest.raises(BundleError):
        pull(there, URL)
    assert there.find_current() is None
