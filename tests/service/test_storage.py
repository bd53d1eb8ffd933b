"""Tables, bundles and versions on a server that speaks S3; credentials come from the environment and stay there."""

import boto3
import pytest
from bascule.commands import main
from datamodules.config import Column, TableConfig
from datamodules.sources import read_files
from moto.server import ThreadedMotoServer
from serve.errors import SchemaError
from service.registry import Registry, publish_version
from service.remote.storage import pull, push
from tests.served import serving

pytestmark = pytest.mark.service
URL = "s3://shop/registry"
TOKEN = "a token of more than 16 characters"
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


def test_a_service_answers_from_what_was_pushed_and_pulled(
    client, registry, published, versions, tmp_path, monkeypatch
):
    there = Registry(tmp_path / "there")
    push(registry, URL)
    pull(there, f"{URL}/")
    monkeypatch.setenv("BASCULE_RELOAD_TOKEN", TOKEN)
    with serving("--registry", there.path) as server:
        assert server.ask("GET", "/v1/status").json["version"] == versions[1]

        publish_version(registry, published[2], is_activated=True)
        push(registry, URL)
        assert main(["pull", "--registry", str(there.path), "--storage", URL]) == 0
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert server.ask("POST", "/v1/reload", headers=headers).status == 200
        assert server.ask("GET", "/v1/status").json["version"] == versions[2]


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
