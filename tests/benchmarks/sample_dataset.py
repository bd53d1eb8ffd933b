"""What is usually written in place of batches by index: a Dataset of one user's window at a time, and its collate.

Users come in random order, so that windows of all lengths share a batch, as such a Dataset has it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from datamodules.batch import FeatureDropout, WindowBatch, encode_missing
from datamodules.sequences import Sequences
from datamodules.sliding_windows import mark_first_times
from serve.encode import EncodedFeatures
from serve.events import Events, standardise_weight
from serve.schema import Schema

Sample = dict[str, Tensor]
_HISTORY = ("history_events", "history_weights", "history_times", "history_groups")


class SampleDataset(Dataset[Sample]):
    """The last events of each user, one row of a `WindowBatch` each."""

    def __init__(self, sequences: Sequences, schema: Schema, withheld: FeatureDropout, seed: int) -> None:
        events = sequences.events
        whole = (events.item_row, events.time, events.event, events.weight)
        self.sequences = replace(sequences, events=Events(*map(_writable, whole), events.offsets))
        self.schema, self.withheld = schema, withheld
        self.rng = np.random.default_rng(seed)
        is_first = mark_first_times(events)  # (E,)
        self.target_weight = np.where(is_first, sequences.target_weight, 0).astype(np.float32)  # (E,)
        self.missing_user = encode_missing(schema.user_features)
        self.missing_context = encode_missing(schema.context_features)

    def __len__(self) -> int:
        return len(self.sequences.user_ids)

    def __getitem__(self, user: int) -> Sample:
        events, rng = self.sequences.events, self.rng
        begin, stop = int(events.offsets[user]), int(events.offsets[user + 1])
        start = max(begin, stop - self.schema.history_length)
        span, n = slice(start, stop), stop - start
        times, weights = events.time[span], self.target_weight[span]  # (n,), (n,)
        recency = np.zeros(n, np.int64)  # (n,)
        has_time = rng.random(n) >= self.withheld.time  # (n,)
        np.subtract(times[1:], times[:-1], out=recency[1:], where=has_time[1:])
        if start > begin:
            weights = weights.copy()
            weights[0] = 0
        arrays = {
            "history_rows": events.item_row[span],
            "history_events": events.event[span],
            "history_weights": standardise_weight(events.weight[span], self.schema),
            "history_times": times,
            "history_groups": np.arange(1, n + 1),
            "target_weights": weights,
            "sees_history": rng.random(n) >= self.withheld.history,
            "recency": recency,
        }
        is_placeless = rng.random(n) < self.withheld.context  # (n,)
        arrays |= _hide("context", self.sequences.context, span, is_placeless, self.missing_context)
        is_nameless = rng.random(1) < self.withheld.user  # (1,)
        arrays |= _hide("user", self.sequences.user, slice(user, user + 1), is_nameless, self.missing_user)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _hide(
    name: str, encoded: EncodedFeatures, span: slice, is_hidden: np.ndarray, missing: EncodedFeatures
) -> dict[str, np.ndarray]:
    """Name the codes and the values of a span, where there are any."""
    parts = {f"{name}_codes": (encoded.codes, missing.codes), f"{name}_values": (encoded.values, missing.values)}
    hidden = {}
    for key, (known, unknown) in parts.items():
        if known.shape[1]:
            hidden[key] = known[span].copy()
            hidden[key][is_hidden] = unknown
    return hidden


def _writable(array: np.ndarray) -> np.ndarray:
    """Copy what a table keeps read-only: torch takes it with a warning alone."""
    return array if array.flags.writeable else array.copy()


def collate(samples: list[Sample]) -> WindowBatch:
    """Pad samples to a batch."""
    n, names = len(samples), samples[0].keys()
    lengths = torch.tensor([len(sample["history_rows"]) for sample in samples])  # (B,)
    of_events = [name for name in names if not name.startswith("user")]
    padded = {name: pad_sequence([sample[name] for sample in samples], batch_first=True) for name in of_events}
    shape = padded["history_rows"].shape  # (B, L)
    arrays = {name: padded[name] for name in _HISTORY} | {"history_lengths": lengths}
    for name, dtype in (("user_codes", torch.int64), ("user_values", torch.float32)):
        arrays[name] = (
            torch.cat([sample[name] for sample in samples]) if name in names else torch.zeros(n, 0, dtype=dtype)
        )
    return WindowBatch(
        arrays,
        padded["history_rows"],
        padded.get("context_codes", torch.zeros(*shape, 0, dtype=torch.int64)),
        padded.get("context_values", torch.zeros(*shape, 0)),
        padded["target_weights"],
        padded["sees_history"],
        padded["recency"],
    )
