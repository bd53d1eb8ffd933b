"""The image: its command needs no root and no file system to write into but the run; its packages are listed."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from tests.http.services import publish_served
from tests.linear_bundle import SHOP
from tests.served import ROOT, Server

DOCKERFILE = (ROOT / "Dockerfile").read_text()
USER = 10_001
# the interpreter may lie in a home; nothing can be written with it
MAY_REACH = "-all,+dac_read_search"
# what `docker run --read-only --user --cap-drop ALL --security-opt no-new-privileges -v RUN:/run/bascule` does
CONTAINER = f"""
mount -t tmpfs tmpfs /run
mkdir /run/bascule
mount --bind "$RUN" /run/bascule
mount -o remount,ro /run
mount -o remount,bind,ro /
mount --bind /tmp /tmp
mount -o remount,bind,ro /tmp
exec setpriv --reuid={USER} --regid={USER} --clear-groups --no-new-privs \
    --inh-caps={MAY_REACH} --ambient-caps={MAY_REACH} --bounding-set={MAY_REACH} "$@"
"""
can_isolate = (
    os.geteuid() == 0
    and shutil.which("setpriv")
    and subprocess.run(["unshare", "-m", "true"]).returncode == 0
)


def read_command(instruction):
    return json.loads(re.findall(rf"^{instruction} (\[.*\])$", DOCKERFILE, re.MULTILINE)[-1])


def contain(run, *command):
    """Return the command line that runs a command as in a container of the image, with a run as its volume."""
    return [
        "env",
        f"RUN={run}",
        "unshare",
        "--mount",
        "sh",
        "-ec",
        CONTAINER,
        "sh",
        *command,
    ]


@pytest.mark.skipif(not can_isolate, reason="needs root, and a mount namespace")
def test_the_command_of_the_image_serves_without_root_from_a_file_system_that_cannot_be_written(
    tmp_path,
):
    run = tmp_path / "run"
    publish_served(run, SHOP)
    subprocess.run(["chown", "-R", str(USER), run], check=True)
    python, *command = [
        *read_command("ENTRYPOINT"),
        *read_command("CMD"),
        "--port",
        "0",
    ]
    assert python == "python"
    for place in (ROOT, "/tmp", "/run", "/etc"):
        assert (
            subprocess.run(
                contain(run, "touch", f"{place}/written"), capture_output=True
            ).returncode
            != 0
        )
    variables = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    line = [*contain(run, sys.executable), *command]
    with subprocess.Popen(
        line, stderr=subprocess.PIPE, text=True, env=variables, cwd=ROOT
    ) as process:
        try:
            port = next(
                found[1]
                for line in process.stderr
                if (found := re.search(r"http://[^:]+:(\d+)", line))
            )
            server = Server(process, int(port))
            assert os.stat(f"/proc/{process.pid}").st_uid == USER
            assert (
                server.ask("POST", "/v1/events", {"user_id": "u1", "item_id": "i107"}).json["kept"]
                == 1
            )
            assert server.ask("POST", "/v1/users/forget", {"user_id": "u1"}).status == 200
            assert server.ask("GET", "/health").status == 200
            assert server.end() == 0, process.stderr.read()
        finally:
            process.kill()
    assert (run / "state" / "state.db").exists()


def test_the_list_of_packages_names_those_that_the_image_installs_and_their_licences(
    tmp_path,
):
    (command,) = re.findall(r"python -m (cyclonedx_py [^\\]*)", DOCKERFILE)
    out = tmp_path / "sbom.json"
    options = ["--no-validate", "-o", out, sys.executable]  # the validation takes 20 s
    subprocess.run(
        [sys.executable, "-m", *command.split(), *options],
        check=True,
        capture_output=True,
    )
    listed = {normalise(one["name"]): one for one in json.loads(out.read_bytes())["components"]}
    files = re.findall(r"-r (requirements/\S+)", DOCKERFILE)
    needed = [
        line
        for file in files
        for line in (ROOT / file).read_text().splitlines()
        if line[0].isalpha()
    ]
    assert len(needed) > 7
    for requirement in needed:
        one = listed[normalise(re.match(r"[\w-]+", requirement)[0])]
        assert one["version"]
        assert one["licenses"]


def normalise(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_image_installs_what_is_asked_for_in_files_of_known_hashes():
    (lock,) = re.findall(r"--require-hashes -r (\S+)", DOCKERFILE)
    packages = re.split(r"\n(?=[a-z])", (ROOT / lock).read_text())[1:]
    versions = {}
    for package in packages:
        name, version = re.match(r"([\w-]+)==(\S+)", package).groups()
        versions[normalise(name)] = Version(version)
        assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", package)) > 0
    asked = [ROOT / "requirements" / f"{name}.txt" for name in ("serve", "http")]
    lines = [line for path in asked for line in path.read_text().splitlines() if line[0].isalpha()]
    assert len(lines) > 7
    for requirement in map(Requirement, lines):
        assert versions[normalise(requirement.name)] in requirement.specifier
