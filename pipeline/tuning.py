"""Search for a better recipe on training and validation rows."""

from __future__ import annotations

from datamodules.splits import Split
from pipeline.config import Config
from pipeline.stages import Work


def tune(given: Config, work: Work, split: Split, text: str) -> None:
    """Try recipes until `tune.trials` of them count, then write down the best."""
    raise NotImplementedError
