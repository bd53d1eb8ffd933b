"""Tables, bundles and versions on a server that speaks S3; credentials come from the environment and stay there."""

import time

import boto3
import pytest
from datamodules.config import Column, TableConfig
from datamodules.sources import read_files
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem
from serve.errors import SchemaError
from service.registry import Registry, publish_version
from service.remote.storage import pull, push
from tests.served import serving

pytestmark = pytest.mark.service
URL = "s3://shop/registry"
ITEMS = (Column("item_id", "item_id", "id", "asked"),)
SECRET = "a-secret-of-the-environment"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "BASCULE_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield boto3.client("s3")
    server.stop()


@pytest.fixture
def client(server):
    server.create_bucket(Bucket="shop")
    yield server
    for thing in server.list_objects_v2(Bucket="shop").get("Contents", []):
        server.delete_object(Bucket="shop", Key=thing["Key"])
    server.delete_bucket(Bucket="shop")


@pytest.fixture
def registry(tmp_path, published):
    opened = Registry(tmp_path / "registry")
    publish_version(opened, published[1], is_activated=True)
    return opened


def test_a_service_takes_up_what_is_pushed(client, registry, published, versions, tmp_path):
    push(registry, URL)
    there = tmp_path / "there"
    there.mkdir()
    with serving("--registry", there, "--storage", URL) as server:
        assert server.ask("GET", "/v1/status").json["version"] == versions[1]

        publish_version(registry, published[2], is_activated=True)
        push(registry, URL)
        end = time.monotonic() + 30
        while server.ask("GET", "/v1/status").json["version"] != versions[2]:
            assert time.monotonic() < end
            time.sleep(0.2)


@pytest.mark.parametrize("has_pointer", [False, True])
def test_of_two_publishers_one_wins(
    client, registry, published, versions, tmp_path, monkeypatch, has_pointer
):
    other = Registry(tmp_path / "other")
    if has_pointer:
        push(registry, URL)
        publish_version(registry, published[3], is_activated=True)
    publish_version(other, published[2], is_activated=True)
    put_file = S3FileSystem.put_file

    def put_meanwhile(self, *arguments, **options):
        monkeypatch.setattr(S3FileSystem, "put_file", put_file)
        push(other, URL)
        self.put_file(*arguments, **options)

    S3FileSystem.clear_instance_cache()  # an open one has its methods
    monkeypatch.setattr(S3FileSystem, "put_file", put_meanwhile)
    with pytest.raises(OSError, match=URL):
        push(registry, URL)
    assert pull(registry, URL)
    assert registry.current() == versions[2]


def test_a_table_is_read_and_what_fails_is_one_line_without_the_secret(client, tmp_path):
    path = tmp_path / "part.csv"
    path.write_text("item_id\n7\n9\n")
    client.upload_file(str(path), "shop", "events/part.csv")
    table = TableConfig(path="s3://shop/events/*.csv")
    assert read_files("data.items.path", table, ITEMS).frame["item_id"].tolist() == ["7", "9"]

    for url in ("s3://nowhere/*.csv", "s3://shop/none.csv"):
        with pytest.raises(SchemaError, match=r"^data\.items\.path: [^\n]+$") as caught:
            read_files("data.items.path", TableConfig(path=url), ITEMS)
        assert SECRET not in str(caught.value)
