"""Observe 1,000 events one by one and say so of each once it is kept, for a parent that kills this process.

python -m tests.around.killed_observer DATABASE SEED
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from service.event_log import Observation
from service.state import StateStore

N_EVENTS, N_USERS = 1000, 7
FIRST = 1_700_000_000


def draw_events(seed: int) -> list[Observation]:
    """Draw the events of a seed; each has a time of its own."""
    rng = random.Random(seed)
    return [
        Observation(
            f"u{rng.randrange(N_USERS)}",
            f"i{rng.randrange(90)}",
            rng.choice(["view", "dismiss"]),
            FIRST + n,
        )
        for n in range(N_EVENTS)
    ]


def main(path: Path, seed: int) -> None:
    store, rng = StateStore(path), random.Random(-seed)
    events, n_kept = draw_events(seed), 0
    while n_kept < N_EVENTS:
        size = rng.choice([1, 1, 1, 5])
        store.observe_many(events[n_kept : n_kept + size])
        n_kept += size
        print(min(n_kept, N_EVENTS), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
