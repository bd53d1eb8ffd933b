"""The image: its command needs no root and no file system to write into but the run; its packages are listed."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
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
    files = re.findall(r"-r (requirements/\S+)", DOCKERFILE)[:1]  # the second is of what lists them
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


def read_lock(name):
    """Return the versions of a lock, each of whose files has a hash."""
    versions = {}
    for package in re.split(r"\n(?=[a-z])", (ROOT / name).read_text())[1:]:
        found, version = re.match(r"([\w-]+)==(\S+)", package).groups()
        versions[normalise(found)] = Version(version)
        assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", package)) > 0
    return versions


def test_the_image_installs_what_is_asked_for_in_files_of_known_hashes():
    lock, lister = re.findall(r"--require-hashes -r (\S+)", DOCKERFILE)
    installs = re.findall(r"pip install (.*?)(?: \\|\n)", DOCKERFILE)
    assert [line for line in installs if "hashes" not in line] == ["--no-cache-dir --no-deps ."]
    assert "cyclonedx-bom" in read_lock(lister)
    versions = read_lock(lock)
    asked = [ROOT / "requirements" / f"{name}.txt" for name in ("serve", "http")]
    lines = [line for path in asked for line in path.read_text().splitlines() if line[0].isalpha()]
    assert len(lines) > 7
    for requirement in map(Requirement, lines):
        assert versions[normalise(requirement.name)] in requirement.specifier


@pytest.mark.parametrize(
    ("base", "is_built"),
    [
        ("python:3.11-slim@sha256:" + "0" * 64, True),
        ("python:3.11-slim", False),
        ("python:3.11-slim@", False),
        ("", False),
    ],
)
def test_an_image_is_released_on_a_base_that_is_named_by_its_digest(tmp_path, base, is_built):
    docker, called = tmp_path / "docker", tmp_path / "called"
    docker.write_text(f'#!/bin/sh\necho "$@" >> {called}\n')
    docker.chmod(0o755)
    variables = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["make", "image", f"BASE={base}", "IMAGE=here"]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert (done.returncode == 0) is is_built
    assert called.exists() is is_built
    if is_built:
        assert called.read_text() == f"build --pull --build-arg BASE={base} -t here .\n"
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert bases == ["${BASE}"] * 2


def test_a_release_is_audited_and_attests_the_list_of_packages_of_what_it_pushed():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    jobs = workflow["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    actions = [step["uses"] for step in steps if "uses" in step]
    assert len(actions) == 4
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in actions)
    commands = "\n".join(step["run"] for step in steps if "run" in step)
    assert workflow["permissions"] == {"contents": "read"}
    assert jobs["image"]["needs"] == "check"
    assert "make audit" in commands
    (listed,) = re.findall(r"-o (\S+/sbom.json)", DOCKERFILE)
    assert f'cat "$NAME:$GITHUB_REF_NAME" {listed} > sbom.json' in commands
    attested = [step["with"] for step in steps if "attest" in step.get("uses", "")]
    digest = "${{ steps.push.outputs.digest }}"
    assert [given["subject-digest"] for given in attested] == [digest] * 2
    assert attested[-1]["sbom-path"] == "sbom.json"
