"""Quality over seconds: what is kept of it, the table of ratios, and the picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADER = ("board", "peer", "its fit s (CPU)", "it reaches", "Bascule passes it after s (CPU)", "ratio (CPU)")
OURS, THEIRS = "#1f5fa8", ("#c0392b", "#2e8b57", "#b8860b")


@dataclass(frozen=True)
class Point:
    """The test after an epoch."""

    epoch: int
    seconds: float
    """Of training until then, on the clock."""
    work: float
    """Of the processor."""
    quality: float


@dataclass(frozen=True)
class Peer:
    """A peer that was fitted in the same call."""

    name: str
    seconds: float
    work: float
    quality: float
    options: str


@dataclass(frozen=True)
class BoardResult:
    """A curve with the peers beside it."""

    board: str
    seed: int
    points: list[Point]
    seconds: float
    """Of the whole fit."""
    work: float
    peers: list[Peer]

    @classmethod
    def read(cls, path: Path) -> BoardResult:
        content: dict[str, Any] = json.loads(path.read_bytes())
        points = [Point(**point) for point in content.pop("points")]
        peers = [Peer(**peer) for peer in content.pop("peers")]
        return cls(**content, points=points, peers=peers)

    @property
    def best_peer(self) -> Peer | None:
        return max(self.peers, key=lambda peer: peer.quality, default=None)

    def passes(self, quality: float) -> Point | None:
        """Return the first epoch after which we are better, None if we never are."""
        return next((point for point in self.points if point.quality > quality), None)


def print_table(results: Sequence[BoardResult], metric: str) -> None:
    """Print a row per peer, the best in bold, and where our schedules end."""
    for row in (HEADER, ("---",) * len(HEADER), *(row for result in results for row in compare(result))):
        print(f"| {' | '.join(row)} |")
    print()
    for result in results:
        last = result.points[-1]
        print(
            f"{result.board}: Bascule's schedule of {last.epoch} epochs ends after {result.seconds:.0f} s "
            f"({result.work:.0f} of the processor) with {metric} {last.quality:.4f}, seed {result.seed}."
        )


def compare(result: BoardResult) -> list[tuple[str, ...]]:
    rows = []
    for peer in result.peers:
        point = result.passes(peer.quality)
        after = f"{point.seconds:.0f} ({point.work:.0f}), epoch {point.epoch}" if point else "never"
        ratio = f"{point.seconds / peer.seconds:.2f} ({point.work / peer.work:.2f})" if point else ""
        name = f"**{peer.name}**" if peer is result.best_peer else peer.name
        rows.append((result.board, name, f"{peer.seconds:.0f} ({peer.work:.0f})", f"{peer.quality:.4f}", after, ratio))
    return rows


def draw(results: Sequence[BoardResult], metric: str, path: Path) -> None:
    """Draw a panel per board: our curve, and each peer where its fit ends, over seconds of the processor.

    Those are what a core that nobody shares would take. The suffix of the path says the format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(results), 3.8), layout="constrained")
    for axes, result in zip(figure.subplots(1, len(results), squeeze=False)[0], results, strict=True):
        axes.plot(
            [point.work for point in result.points],
            [point.quality for point in result.points],
            marker="o",
            markersize=3,
            color=OURS,
            label="Bascule, after each epoch",
        )
        for peer, colour in zip(result.peers, THEIRS, strict=False):
            axes.plot(peer.work, peer.quality, "D", color=colour, label=peer.name)
            axes.axhline(peer.quality, color=colour, linewidth=0.6, linestyle=":")
        axes.set(title=result.board, xlabel="processor seconds of training, one core", ylabel=f"{metric} of the test")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower right", fontsize="small", frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
