"""How long each kind of live data is kept; `State.expire_slices` removes what is older."""

from __future__ import annotations

from dataclasses import dataclass

from serve.clock import DAY
from serve.errors import SchemaError

_DAYS = 365.0
_MAX_DAYS = 36_500


@dataclass(frozen=True)
class Retention:
    """Days for which each kind of data is kept.

    Raises:
        SchemaError: a retention keeps nothing, or everything.
    """

    events: float = _DAYS
    impressions: float = _DAYS

    def __post_init__(self) -> None:
        for kind, days in vars(self).items():
            if not 0 < days < _MAX_DAYS:
                raise SchemaError(
                    f"the retention of {kind} is {days:g} days; allowed: above 0, "
                    f"below {_MAX_DAYS}"
                )

    @classmethod
    def of(cls, days: float) -> Retention:
        """Return the retention that keeps everything as long."""
        return cls(days, days)

    @classmethod
    def parse(cls, text: str) -> Retention:
        """Read days for everything, such as `90`, or by kind, as `events=365,impressions=90`."""
        try:
            if "=" not in text:
                return cls.of(float(text))
            pairs = [part.split("=") for part in text.split(",")]
            return cls(**{kind: float(days) for kind, days in pairs})
        except (TypeError, ValueError) as error:
            raise SchemaError(
                f"the retention is '{text}' ({error}); expected days above 0 and below "
                f"{_MAX_DAYS}, as in 365 or events=365,impressions=90"
            ) from error

    def begin(self, kind: str, now: int) -> float:
        """Return the UTC seconds before which data of a kind is too old."""
        days: float = getattr(self, kind)
        return now - days * DAY
