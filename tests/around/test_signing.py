"""Signed bundles: only what a trusted key signed is read, wherever a bundle is read."""

import shutil
import subprocess
import sys

import pytest
from bascule.commands import _SIGN_HELP, main
from serve.bundle import Bundle
from serve.errors import BundleError
from service.publish import sign
from service.registry import Registry
from service.sources import BundleSource, RegistrySource
from tests.core.test_hostile_bundle import hash_again
from tests.linear_bundle import SHOP, publish_linear
from tests.served import ROOT

pytest.importorskip("cryptography")
pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl makes the keys, as documented"
)
MAKE = "\n".join(line for line in _SIGN_HELP.splitlines() if "  openssl" in line)


@pytest.fixture
def bundle(tmp_path):
    return publish_linear(tmp_path / "run", SHOP, 3)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Make the keys of three people as documented: `old` and `new` are trusted in turn, `strange` never."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("old", "new", "strange"):
        (folder / name).mkdir()
        subprocess.run(MAKE, shell=True, cwd=folder / name, check=True)
    (folder / "both.pem").write_text(
        "".join((folder / name / "trusted.pem").read_text() for name in ("old", "new"))
    )
    return folder


def refuse(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_signature_changes_neither_the_version_nor_what_needs_none(bundle, keys, capsys):
    version = Bundle.load(bundle).manifest.version
    assert (
        main(
            [
                "sign",
                "--bundle",
                str(bundle),
                "--key",
                str(keys / "old" / "signing.pem"),
            ]
        )
        == 0
    )
    assert Bundle.load(bundle).manifest.version == version
    assert Bundle.load(bundle, trusted=keys / "old" / "trusted.pem").manifest.version == version
    assert (
        main(
            [
                "verify",
                "--bundle",
                str(bundle),
                "--trusted-keys",
                str(keys / "both.pem"),
            ]
        )
        == 0
    )


def test_keys_are_rotated_while_both_are_trusted(bundle, keys):
    hash_again(bundle, index_recall=1.0)  # as earlier bundles have it
    for name, other in (("old", "new"), ("new", "old")):
        sign(bundle, keys / name / "signing.pem")
        Bundle.load(bundle, trusted=keys / "both.pem")
        Bundle.load(bundle, trusted=keys / name / "trusted.pem")
        with pytest.raises(BundleError):
            Bundle.load(bundle, trusted=keys / other / "trusted.pem")


def edit(bundle, keys):
    hash_again(bundle, neighbour_decay=0.5)


def sign_anew(bundle, keys):
    edit(bundle, keys)
    sign(bundle, keys / "strange" / "signing.pem")


def claim(bundle, keys):
    name, key_id, _ = (bundle / "manifest.sig").read_text().split()
    sign_anew(bundle, keys)
    (bundle / "manifest.sig").write_text(
        f"{name} {key_id} {(bundle / 'manifest.sig').read_text().split()[2]}\n"
    )


def damage(bundle, keys):
    (bundle / "manifest.sig").write_bytes(b"[" * 100_000)


def remove(bundle, keys):
    (bundle / "manifest.sig").unlink()


@pytest.mark.parametrize("change", [edit, sign_anew, claim, damage, remove])
def test_a_bundle_that_was_changed_or_that_others_signed_is_refused(
    bundle, keys, change, tmp_path, capsys
):
    sign(bundle, keys / "old" / "signing.pem")
    change(bundle, keys)
    trust = ("--trusted-keys", keys / "both.pem")
    assert "manifest.sig" in refuse(capsys, "verify", "--bundle", bundle, *trust)
    out = tmp_path / "out.csv"
    assert "manifest.sig" in refuse(
        capsys, "recommend", "--bundle", bundle, "--all-users", "--out", out, *trust
    )
    registry = Registry(tmp_path / "registry")
    assert main(["publish", "--bundle", str(bundle), "--registry", str(registry.path)]) == 0
    (version,) = registry.versions()
    assert "manifest.sig" in refuse(
        capsys, "activate", "--version", version, "--registry", registry.path, *trust
    )
    assert registry.find_current() is None


def test_a_signature_is_published_with_its_bundle_and_also_behind_it(bundle, keys, tmp_path):
    registry = Registry(tmp_path / "registry", keys / "old" / "trusted.pem")
    publish = [
        "publish",
        "--bundle",
        str(bundle),
        "--registry",
        str(registry.path),
        "--activate",
    ]
    assert main(publish) == 0
    with pytest.raises(BundleError):
        RegistrySource(registry).load()
    sign(bundle, keys / "old" / "signing.pem")
    assert main(publish) == 0
    assert RegistrySource(registry).load().version == BundleSource(bundle).load().version


@pytest.mark.parametrize("content", ["", "-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----"])
def test_keys_that_cannot_be_read_are_named(bundle, keys, tmp_path, content, capsys):
    path = tmp_path / "trusted.pem"
    path.write_text(content)
    sign(bundle, keys / "old" / "signing.pem")
    assert str(path) in refuse(capsys, "verify", "--bundle", bundle, "--trusted-keys", path)
    assert str(path) in refuse(capsys, "sign", "--bundle", bundle, "--key", path)


def test_an_unsigned_bundle_is_not_served_where_keys_are_trusted(bundle, keys):
    command = [sys.executable, "-m", "bascule", "serve", "--bundle", bundle, "--port", "0"]
    command += ["--trusted-keys", keys / "both.pem"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_without_the_extra_only_signatures_are_refused(bundle, keys):
    sign(bundle, keys / "old" / "signing.pem")
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from bascule.commands import _SIGN_HELP, main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "verify", "--bundle", str(bundle)]
    assert subprocess.run(command, check=False).returncode == 0
    done = subprocess.run(
        [*command, "--trusted-keys", keys / "both.pem"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "pip install" in done.stderr
