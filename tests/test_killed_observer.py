"""What was acknowledged is there after kill -9, at whatever moment it comes."""

import random
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from serve.state import StateStore
from tests.killed_observer import N_EVENTS, N_USERS, draw_events

ROOT = Path(__file__).parent.parent


def kill_after(path, seed, n_lines):
    """Start an observer and kill it after some acknowledgements; return how many events were acknowledged in all."""
    command = [sys.executable, "-m", "tests.killed_observer", str(path), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        lines = [child.stdout.readline() for _ in range(n_lines)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines()
        whole = [line for line in lines if line.strip()]
    assert child.returncode == -signal.SIGKILL
    return int(whole[-1]) if whole else 0


@pytest.mark.parametrize("seed", range(5))
def test_no_acknowledged_event_is_lost(tmp_path, seed):
    path = tmp_path / "state" / "state.db"
    n_acknowledged = kill_after(path, seed, random.Random(seed).randrange(1, 240))
    assert 0 < n_acknowledged < N_EVENTS
    events = draw_events(seed)
    with closing(StateStore(path)) as store:
        kept = set()
        for user_id in (f"u{number}" for number in range(N_USERS)):
            history = store.history(user_id)
            kept |= {(user_id, *one) for one in zip(history.item_id, history.event, history.datetime, strict=True)}
        assert {user for user, *_ in kept} <= {one.user_id for one in events}
        at_least = [one for one in events[:n_acknowledged] if one.event == "view"]
        expected = {(one.user_id, one.item_id, one.event, one.datetime) for one in at_least}
        assert expected <= kept
        for one in events[:n_acknowledged]:
            if one.event == "dismiss":
                assert one.item_id in store.dismissed(one.user_id)
        assert store.observe("u0", "after", "view", 1)
        assert store.history("u0").item_id[0] == "after"
