"""What answers requests at one time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from serve.recommender import Recommender


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A version in memory. A request takes it once, so that its answer is of one version throughout."""

    recommender: Recommender
    folder: Path
    """Where it was loaded from."""
    loaded_at: float = field(default_factory=time.time)
    """UTC seconds."""

    @property
    def version(self) -> str:
        return self.recommender.bundle.manifest.version
