"""Whatever is wrong with a new version, the old one answers on, and the reason is kept."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest

from serve.registry.changes import activate
from serve.registry.serving import Serving
from serve.registry.sources import BundleSource, RegistrySource
from tests.damaged_bundles import damages
from tests.linear_registry import (
    ask,
    point_by_folder,
    point_by_link,
    point_by_pipe,
    point_nowhere,
    point_to_a_link,
    point_to_another,
    point_to_nothing,
)

DAMAGES = list(damages())
CURRENTS = (
    *("../bundle", "/etc/passwd", "..", ".", "", "\0", "ABCDEF012345", "0123456789abc", "0123456789a", "é" * 12),
    *("0123456789ab\n0123456789ab", " 0123456789ab", "0123456789ab\r", "x" * 20_000, "profiles", ".lock"),
)


@pytest.fixture(scope="module")
def shown(published) -> tuple[Serving, list[list[str]]]:
    """One service for all damages: it goes on for the whole table."""
    serving = Serving.start(BundleSource(published[1]))
    return serving, ask(serving.current())


@pytest.mark.parametrize(("damage", "message"), [row[1:] for row in DAMAGES], ids=[row[0] for row in DAMAGES])
def test_a_damaged_bundle_is_refused_and_the_old_one_answers_on(published, versions, shown, tmp_path, damage, message):
    serving, expected = shown
    before, started = serving.current(), time.time()
    folder = Path(shutil.copytree(published[2], tmp_path / "bundle"))
    damage(folder, published[1])
    outcome = serving.reload(BundleSource(folder))
    assert not outcome.is_loaded
    assert outcome.version == versions[1]
    assert re.search(message, outcome.reason)
    assert str(tmp_path) not in outcome.reason
    assert "\n" not in outcome.reason
    assert started <= outcome.time <= time.time()
    assert serving.last_reload == outcome
    assert serving.current() is before
    assert ask(serving.current()) == expected


@pytest.mark.parametrize(("damage", "message"), [row[1:] for row in DAMAGES[::7]], ids=[row[0] for row in DAMAGES[::7]])
def test_a_damaged_version_of_a_registry_is_refused_too(published, versions, registry, damage, message):
    source = RegistrySource(registry)
    activate(registry, versions[1])
    serving = Serving.start(source)
    activate(registry, versions[2])
    damage(registry.path / versions[2], published[1])
    outcome = serving.reload(source)
    assert (outcome.is_loaded, outcome.version) == (False, versions[1])
    assert re.search(message, outcome.reason)
    assert str(registry.path.parent) not in outcome.reason
    assert serving.current().version == versions[1]


@pytest.mark.parametrize("content", CURRENTS, ids=lambda content: repr(content)[:20])
def test_a_pointer_that_names_no_version_is_refused(registry, versions, content):
    serving = Serving.start(RegistrySource(registry))
    (registry.path / "CURRENT").write_text(content)
    outcome = serving.reload(RegistrySource(registry))
    assert (outcome.is_loaded, outcome.version) == (False, versions[2])
    assert outcome.reason.startswith("CURRENT ")
    assert str(registry.path.parent) not in outcome.reason


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (point_by_link, "CURRENT cannot be read: .*links are refused"),
        (point_by_folder, "CURRENT is no plain file"),
        (point_by_pipe, "CURRENT is no plain file"),
        (point_nowhere, "no version is current in registry: CURRENT is missing"),
        (point_to_nothing, "version .* is not in the registry"),
        (point_to_a_link, "is no folder in the registry, or a link"),
        (point_to_another, r"version .* holds manifest\.json of "),
    ],
)
def test_a_pointer_or_a_version_that_leads_elsewhere_is_refused(registry, versions, damage, message):
    serving = Serving.start(RegistrySource(registry))
    damage(registry, versions[2])
    outcome = serving.reload(RegistrySource(registry))
    assert (outcome.is_loaded, outcome.version) == (False, versions[2])
    assert re.search(message, outcome.reason)
    assert str(registry.path.parent) not in outcome.reason
