"""A run with pseudonyms, from tables of e-mail addresses to lists, feedback and exports, and its next key."""

import json
import re
import secrets
import shutil
import sqlite3
import time
from contextlib import closing

import pandas as pd
import pyarrow.parquet as pq
import pytest
import train
import yaml
from bascule.commands import main
from bascule.rights import gather
from serve.bundle import BUNDLE, PROFILES, SCHEMA, STATE, STATE_FILE
from serve.cells import KEY_FILE, read_keys
from serve.errors import BundleError, SchemaError
from serve.files import FORGOTTEN, read_opt_outs
from serve.profiles import Profiles
from serve.schema import Schema
from service.event_log import read_log
from service.forget import forget_users
from service.rotate import rotate
from service.service import Service
from service.sources import BundleSource
from service.state import StateStore
from tests.pipeline.small_runs import BASKETS, QUIET, make_tables

from service import rotate as rotation

pytestmark = pytest.mark.slow
ADDRESS = re.compile(rb"[a-z0-9]+@mail\.example")
BOT, STRANGER = "bot@mail.example", "stranger@mail.example"
NOW = 1_700_000_000


def name_address(user_id):
    return f"person{user_id}@mail.example"


def write_key(path, n_keys=1):
    path.write_text("".join(f"{secrets.token_hex(32)}\n" for _ in range(n_keys)))
    path.chmod(0o600)
    return path


def write_shop(folder):
    """Write the tables and configuration of a shop whose users go by e-mail addresses."""
    interactions, users, items = make_tables(BASKETS)
    for table in (interactions, users):
        table["user_id"] = table["user_id"].map(name_address)
    bots = interactions.head(6).assign(user_id=BOT)
    swapped = interactions.head(1).assign(datetime=name_address("swapped"))
    interactions = pd.concat([interactions, bots, swapped])
    interactions.to_csv(folder / "interactions.csv", index=False)
    with (folder / "interactions.csv").open("a") as file:
        file.write(f"{name_address('torn')},100\n")
    users.to_parquet(folder / "users.parquet")
    items.to_parquet(folder / "items.parquet")
    data = {
        "features": {"item": {"category": "categorical"}},
        "pseudonyms": str(folder / "users.key"),
        "exclude_users": [BOT],
        "max_reject_rate": 0.1,
        "ties": BASKETS.ties,
        "repeats": BASKETS.repeats,
        "split": {"kind": "time", "at": BASKETS.split.at},
        "interactions": {"path": str(folder / "interactions.csv")},
        "users": {"path": str(folder / "users.parquet")},
        "items": {"path": str(folder / "items.parquet")},
    }
    content = {"data": data, "trainer": QUIET, "evaluation": {"baselines": []}}
    (folder / "shop.yaml").write_text(yaml.safe_dump(content))
    return folder / "shop.yaml"


def serve_for_a_while(run):
    """Let people who are known and unknown do something and be shown lists; forget one."""
    service = Service(BundleSource(run / BUNDLE), run, None, None, 36_000.0)
    try:
        known = name_address("u001")
        service.observe(
            [{"user_id": user, "item_id": 105, "datetime": NOW} for user in (known, STRANGER)]
        )
        requests = [{"user_id": user} for user in (known, STRANGER, name_address("u002"))]
        parsed = [*service.read(requests, service.current)]
        service.log_shown(service.current, service.current.recommend(parsed, 3), "r1")
        # the log has lists at the time of the machine
        named = {"user_id": known, "item_id": 107, "request_id": "r1", "datetime": int(time.time())}
        service.observe([named])
        service.forget(name_address("u003")).result()
        return [request.user_known for request in parsed]
    finally:
        service.close()


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    key = write_key(folder / "users.key")
    config = write_shop(folder)
    run = folder / "my"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(KEY_FILE, raising=False)
        assert train.main(["--config", str(config), "--out", str(run), "--quick"]) == 0
        patch.setenv(KEY_FILE, str(key))
        assert serve_for_a_while(run) == [True, True, True]
        asked = folder / "requests.jsonl"
        asked.write_text(json.dumps({"user_id": name_address("u004")}))
        bundle = ["--bundle", str(run / BUNDLE)]
        assert (
            main(["recommend", *bundle, "--requests", str(asked), "--out", str(run / "lists.csv")])
            == 0
        )
        assert main(["export", *bundle, "--side", "user", "--out", str(run / "vectors")]) == 0
        assert main(["feedback", "--run", str(run)]) == 0
    return folder


def read_bytes_and_cells(folder):
    """Return the bytes of each file of a folder, of Parquet with all cells."""
    contents = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            contents[path.relative_to(folder)] = path.read_bytes()
            if path.suffix == ".parquet":
                contents[path.relative_to(folder)] += repr(pq.read_table(path).to_pydict()).encode()
    return contents


def test_no_file_of_the_run_holds_an_address(shop):
    contents = read_bytes_and_cells(shop / "my")
    source = (shop / "interactions.csv").read_bytes()

    assert len(set(ADDRESS.findall(source))) > 60  # so that the search would find them
    assert {"profiles", "state", "feedback", "vectors", "checkpoints"} <= {
        path.parts[0] for path in contents
    }
    assert {
        path: set(ADDRESS.findall(content))
        for path, content in contents.items()
        if ADDRESS.search(content)
    } == {}


def test_everything_goes_by_the_pseudonym_of_the_id(shop):
    keys = read_keys(str(shop / "users.key"))
    profiles = Profiles.load(shop / "my" / PROFILES)
    log = read_log(shop / "my" / STATE / STATE_FILE)

    expected = {keys.name(name_address(f"u{number:03d}")) for number in range(60)}
    assert set(profiles.user_ids.tolist()) == expected - {keys.name(name_address("u003"))}
    assert set(log.events.column("user_id").to_pylist()) == {
        keys.name(name_address("u001")),
        keys.name(STRANGER),
    }
    assert keys.name(name_address("u004")) in (shop / "my" / "lists.csv").read_text()


def test_people_are_shown_and_opt_out_by_their_own_id(shop, tmp_path, monkeypatch):
    keys = read_keys(str(shop / "users.key"))
    run = tmp_path / "my"
    shutil.copytree(shop / "my", run)
    monkeypatch.setenv(KEY_FILE, str(shop / "users.key"))
    address = name_address("u001")

    held = gather(run, [address])[address]
    assert {"interactions", "users", PROFILES, "impressions"} <= set(held)
    assert held["live events"]
    assert main(["user", "opt-out", "--run", str(run), "--user", address]) == 0
    service = Service(BundleSource(run / BUNDLE), run, None, None, 36_000.0)
    service.choose(name_address("u005"), is_out=True)
    service.close()
    opted_out = read_opt_outs(run)
    for out in (address, name_address("u005")):
        assert opted_out.holds(keys.name(out))
        assert not opted_out.holds(out)
    shutil.rmtree(run / BUNDLE)  # nothing says whose pseudonyms these are
    assert main(["user", "opt-out", "--run", str(run), "--user", address]) == 2


# ---- keys


def test_a_missing_or_wrong_key_is_one_error_wherever_an_id_comes_in(shop, tmp_path, monkeypatch):
    run = shop / "my"
    schema = Schema.from_json((run / BUNDLE / SCHEMA).read_text())
    monkeypatch.delenv(KEY_FILE, raising=False)
    for path in (None, write_key(tmp_path / "other.key")):
        if path is not None:
            monkeypatch.setenv(KEY_FILE, str(path))
        with pytest.raises(BundleError, match=schema.pseudonyms):
            schema.parse_user_id(name_address("u001"), "user_id")
        with pytest.raises(BundleError, match=schema.pseudonyms):
            forget_users(run, [name_address("u001")])
        with pytest.raises(BundleError, match=schema.pseudonyms):
            rotate(run)
        with pytest.raises(BundleError, match=schema.pseudonyms):
            BundleSource(run / BUNDLE).load()
        for command in ("recommend --all-users", "export --side user"):
            words = [*command.split(), "--bundle", str(run / BUNDLE), "--out", str(tmp_path / "x")]
            assert main(words) == 2
        assert not (tmp_path / "x").exists()


def test_a_training_from_a_run_needs_its_key(shop, tmp_path):
    words = [
        "--config",
        str(shop / "shop.yaml"),
        "--quick",
        "--previous",
        str(shop / "my" / BUNDLE),
    ]
    other = ["--data.pseudonyms", str(write_key(tmp_path / "other.key"))]

    assert train.main([*words, *other, "--out", str(tmp_path / "next")]) == 2
    assert not (tmp_path / "next" / BUNDLE).exists()


def test_a_key_that_others_may_read_is_refused(tmp_path):
    path = write_key(tmp_path / "open.key")
    path.chmod(0o644)
    with pytest.raises(SchemaError, match="600"):
        read_keys(str(path))


def test_rotation_renames_everybody_and_leaves_no_byte_of_the_old_pseudonyms(
    shop, tmp_path, monkeypatch
):
    old = read_keys(str(shop / "users.key"))
    run = tmp_path / "my"
    shutil.copytree(shop / "my", run)
    both = tmp_path / "both.key"
    both.write_text((shop / "users.key").read_text() + write_key(tmp_path / "new.key").read_text())
    both.chmod(0o600)
    keys = read_keys(str(both))
    before = Profiles.load(run / PROFILES)
    monkeypatch.setenv(KEY_FILE, str(both))
    with pytest.raises(SchemaError):  # another name would bring back who was forgotten
        rotate(run)
    (run / FORGOTTEN).unlink()
    with closing(sqlite3.connect(run / STATE / STATE_FILE)) as connection:
        connection.execute("PRAGMA user_version = 0")  # the state remembers how long the list was
    # somebody came under the new pseudonym while the run still had the old ones
    with closing(StateStore(run / STATE / STATE_FILE)) as store:
        store.observe(keys.name(STRANGER), 110, None, NOW + 20)

    with pytest.raises(BundleError, match="rotate"):
        BundleSource(run / BUNDLE).load()
    users = read_log(run / STATE / STATE_FILE).events.column("user_id").to_pylist()
    with monkeypatch.context() as patch:  # the disk fails before the last step
        broken = rotation._RENAME.replace("INSERT INTO user_keys", "INSERT INTO nothing")
        patch.setattr(rotation, "_RENAME", broken)
        with pytest.raises(OSError, match="state"):
            rotate(run)
    assert read_log(run / STATE / STATE_FILE).events.column("user_id").to_pylist() == users
    for _ in range(2):  # the second finds nothing to do
        rotate(run)

    after = Profiles.load(run / PROFILES)
    assert after.user_ids.tolist() == [keys.name(name) for name in before.user_ids]
    assert after.history.item_id.tolist() == before.history.item_id.tolist()
    found = {
        path: content
        for path, content in read_bytes_and_cells(run).items()
        if path.parts[0] in (PROFILES, STATE) and f"p{old.first}-".encode() in content
    }
    assert found == {}
    service = Service(BundleSource(run / BUNDLE), run, None, None, 36_000.0)
    try:
        stranger, known = service.read(
            [{"user_id": STRANGER}, {"user_id": name_address("u001")}], service.current
        )
        assert stranger.history.item_id.tolist() == [105, 110]
        assert known.history.item_id.tolist()[-2:] == [105, 107]
        assert service.forget(STRANGER).result()[0]["erased"]["events"] == 2
    finally:
        service.close()
