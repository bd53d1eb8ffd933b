"""What changes while a bundle serves: events of users, what was shown to them, and who is to be forgotten."""

from __future__ import annotations

from serve.state.impressions import Impressions
from serve.state.observations import DISMISS, UNDISMISS, Observation
from serve.state.store import Recalled, StateStore

__all__ = ["DISMISS", "UNDISMISS", "Impressions", "Observation", "Recalled", "StateStore"]
