"""An experiment: users in arms by a hash of their ids, each arm with a policy and, where it has one, a version.

    {"salt": "spring", "arms": {"as_is": {"share": 0.9}, "explored": {"share": 0.1, "policy": {"kind": "explore"}}}}

A user stays in their arm as long as salt and shares stay, in every process and after each start: nothing is stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from serve.errors import SchemaError
from serve.recommender import Recommender
from serve.requests import Id, check_fields, check_number, show
from service.live_items import LiveItems

_ROUNDING = 1e-9  # of the sum of shares
MAX_TEMPERATURE = 10.0
MAX_EXPLORED = 20


@dataclass(frozen=True)
class Policy:
    """How lists come about: by falling score, or with some slots drawn at random."""

    kind: Literal["greedy", "explore"] = "greedy"
    temperature: float = 0.5  # of draws, in standard deviations of the scores of the items that may be drawn
    new_items: float = 0.0  # added to the score of a new item, in the same unit
    slots: int = 3  # of a list that are drawn: its last ones
    share: float = 1.0  # of lists
    lists_per_day: int = 20  # of one user, at most; those beyond are greedy

    def __post_init__(self) -> None:
        """Refuse what is no policy."""
        if self.kind not in ("greedy", "explore"):
            raise SchemaError(
                f"policy.kind is {show(self.kind)}; allowed: greedy, explore"
            )
        check_number(self.temperature, "policy.temperature", 0.01, MAX_TEMPERATURE)
        check_number(self.new_items, "policy.new_items", 0, MAX_TEMPERATURE)
        check_number(self.slots, "policy.slots", 1, MAX_EXPLORED, int)
        check_number(self.share, "policy.share", 0, 1)
        check_number(self.lists_per_day, "policy.lists_per_day", 0, 1_000_000, int)

    @classmethod
    def from_text(cls, text: str) -> Policy:
        """Return the policy whose text this is."""
        kind, *values = text.split()
        given = {
            name: float(value)
            for name, _, value in (one.partition("=") for one in values)
        }
        whole = {field.name for field in fields(cls) if field.type == "int"}
        return cls(
            kind,
            **{
                name: int(value) if name in whole else value
                for name, value in given.items()
            },
        )  # type: ignore[arg-type]

    def __str__(self) -> str:
        """Say how lists come about, for the log of what was shown."""
        if self.kind == "greedy":
            return self.kind
        return " ".join(
            (
                self.kind,
                *(
                    f"{name}={value:g}"
                    for name, value in vars(self).items()
                    if name != "kind"
                ),
            )
        )


@dataclass(frozen=True)
class Arm:
    """Users who are treated alike."""

    name: str
    share: float  # of users
    policy: Policy = field(default_factory=Policy)
    version: str | None = None  # of the registry; None is the current one


@dataclass(frozen=True)
class Experiment:
    """Arms, and the salt that decides who is in which."""

    salt: str
    arms: tuple[Arm, ...]

    @classmethod
    def read(cls, path: Path) -> Experiment:
        """Read and check a file; a SchemaError says what does not fit."""
        try:
            return cls.parse(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:  # of JSON, too
            raise SchemaError(f"{path}: {error}") from error

    @classmethod
    def parse(cls, content: Any) -> Experiment:
        """Check the content of a file."""
        given = check_fields(content, ("salt", "arms"), "the experiment")
        salt = given.get("salt")
        arms = given.get("arms")
        if not isinstance(salt, str) or not salt:
            raise SchemaError(
                f"salt is {show(salt)}; expected a text, another one for each experiment"
            )
        if not isinstance(arms, Mapping) or not arms:
            raise SchemaError(
                f"arms is {show(arms)}; expected name -> {{share, policy, version}}"
            )
        parsed = tuple(_parse_arm(str(name), one) for name, one in arms.items())
        total = sum(one.share for one in parsed)
        if abs(total - 1) > _ROUNDING:
            raise SchemaError(f"the shares of the arms sum to {total:g}; expected 1")
        return cls(salt, parsed)

    def assign(self, user: Id) -> Arm:
        """Return the arm of a user; 7 and "7" are the same."""
        digest = hashlib.sha256(
            f"{len(self.salt)} {self.salt} {user}".encode(errors="surrogatepass")
        ).digest()
        left = int.from_bytes(digest[:8], "big") / 2**64
        for arm in self.arms[:-1]:
            if left < arm.share:
                return arm
            left -= arm.share
        return self.arms[-1]


class Arms:
    """The arms of a service, with the versions that they name, each with all live items."""

    def __init__(
        self, experiment: Experiment, items: Path, load: Callable[[str], Recommender]
    ) -> None:
        """Load the versions; `items` is the file of live items."""
        self.experiment = experiment
        self._items: dict[str, LiveItems] = {}
        try:
            for version in dict.fromkeys(
                arm.version for arm in experiment.arms if arm.version is not None
            ):
                self._items[version] = LiveItems(items, load(version))
        except (ValueError, OSError):
            self.close()
            raise

    def recommender(self, arm: Arm, current: Recommender) -> Recommender:
        """Return what answers in an arm."""
        return current if arm.version is None else self._items[arm.version].recommender

    def follow(self) -> None:
        """Take up the live items that were changed."""
        for items in self._items.values():
            items.follow()

    def close(self) -> None:
        for items in self._items.values():
            items.close()


def _parse_arm(name: str, content: Any) -> Arm:
    given = check_fields(content, ("share", "policy", "version"), f"arms.{name}")
    version = given.get("version")
    share = check_number(given.get("share"), f"arms.{name}.share", 0, 1)
    if not (version is None or isinstance(version, str)):
        raise SchemaError(
            f"arms.{name}.version is {show(version)}; expected a version of the registry"
        )
    names = tuple(one.name for one in fields(Policy))
    policy = check_fields(given.get("policy", {}), names, f"arms.{name}.policy")
    return Arm(name, share, Policy(**policy), version)
