"""An experiment: users in arms by a hash of their ids, each arm with a policy and a version.

    {"salt": "spring", "arms": {"as_is": {"share": 0.9}, "explored": {"share": 0.1, "policy":
    {"kind": "explore"}}}}

A user stays in their arm as long as salt and shares stay, in every process and after each start:
nothing is stored. Where shares change, users move only into arms whose share grew more than that of
theirs (rendezvous hashing with weights; Thaler and Ravishankar 1998).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from serve.arrays import Id
from serve.cells import check_number
from serve.errors import SchemaError, show
from serve.requests import check_fields

_ROUNDING = 1e-9  # of the sum of shares
MAX_TEMPERATURE = 10.0
MAX_EXPLORED = 20
_WHOLE = ("slots", "lists_per_day")  # fields of a policy that are integers


@dataclass(frozen=True)
class Policy:
    """How lists come about: by falling score, or with some slots drawn at random."""

    kind: Literal["greedy", "explore"] = "greedy"
    temperature: float = 0.5  # of draws, in standard deviations of their scores
    new_items: float = 0.0  # added to the score of a new item, in the same unit
    slots: int = 3  # of a list that are drawn: its last ones
    share: float = 1.0  # of lists
    lists_per_day: int = 20  # of one user, at most; those beyond are greedy

    def __post_init__(self) -> None:
        """Raise a SchemaError for what is no policy."""
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
        kind, *words = text.split()
        values: dict[str, Any] = {"kind": kind}
        for word in words:
            name, _, number = word.partition("=")
            values[name] = int(number) if name in _WHOLE else float(number)

        return cls(**values)

    def __str__(self) -> str:
        """Say how lists come about, for the log of what was shown."""
        if self.kind == "greedy":
            return self.kind
        numbers = [
            f"{name}={value:g}" for name, value in vars(self).items() if name != "kind"
        ]
        return " ".join([self.kind, *numbers])


@dataclass(frozen=True)
class Arm:
    """Users who are treated alike."""

    name: str
    share: float  # of users
    label: str  # in the log, `SALT/NAME`: another experiment may have the same name
    policy: Policy = Policy()
    version: str | None = None  # of the registry; None is the current one


@dataclass(frozen=True)
class Experiment:
    """Arms, and the salt that decides who is in which."""

    salt: str
    arms: tuple[Arm, ...]

    @classmethod
    def read(cls, path: Path) -> Experiment:
        """Read and check a file.

        Raises:
            SchemaError: the file is no JSON, or a value does not fit.
        """
        try:
            return cls.parse(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise SchemaError(f"{path}: {error}") from error

    @classmethod
    def parse(cls, content: Any) -> Experiment:
        """Check the content of a file."""
        values = check_fields(content, ("salt", "arms"), "the experiment")
        salt = values.get("salt")
        arms = values.get("arms")
        if not isinstance(salt, str) or not salt:
            raise SchemaError(
                f"salt is {show(salt)}; expected a text, another one for each "
                "experiment"
            )

        if not isinstance(arms, Mapping) or not arms:
            raise SchemaError(
                f"arms is {show(arms)}; expected name -> {{share, policy, version}}"
            )

        parsed = tuple(_parse_arm(salt, str(name), arm) for name, arm in arms.items())
        total = sum(arm.share for arm in parsed)
        if abs(total - 1) > _ROUNDING:
            raise SchemaError(f"the shares of the arms sum to {total:g}; expected 1")
        return cls(salt, parsed)

    def assign(self, user: Id) -> Arm:
        """Return the arm of a user; 7 and "7" are the same."""

        def wait(arm: Arm) -> float:
            """Return a time that is exponential with the rate `share`: the first one wins."""
            text = f"{len(self.salt)} {self.salt} {len(arm.name)} {arm.name} {user}"
            digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
            uniform = (int.from_bytes(digest[:8], "big") + 1) / 2**64
            return -math.log(uniform) / arm.share

        return min((arm for arm in self.arms if arm.share), key=wait)


def _parse_arm(salt: str, name: str, content: Any) -> Arm:
    where = f"arms.{name}"
    values = check_fields(content, ("share", "policy", "version"), where)
    share = check_number(values.get("share"), f"{where}.share", 0, 1)
    version = values.get("version")
    if not isinstance(version, str | None):
        raise SchemaError(
            f"{where}.version is {show(version)}; expected a version of the registry"
        )

    policy = check_fields(
        values.get("policy", {}), Policy.__dataclass_fields__, f"{where}.policy"
    )
    return Arm(name, share, f"{salt}/{name}", Policy(**policy), version)
