"""What is usually written in place of batches by index: a Dataset of one user's window at a time, and its collate."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from datamodules.batch import WindowBatch
from datamodules.missing import Withheld, encode_missing
from datamodules.sequences import Sequences
from datamodules.windows import mark_first_times
from serve.encoding import EncodedFeatures
from serve.schema import Schema
from serve.tower_inputs import standardise_weight

Sample = dict[str, Tensor]
_OF_EVENTS = ("history_events", "history_weights", "history_times", "history_groups")
_OF_USER = ("history_lengths", "user_codes", "user_values")


class SampleDataset(Dataset[Sample]):
    """The last events of each user, one row of a `WindowBatch` each."""

    def __init__(self, sequences: Sequences, schema: Schema, withheld: Withheld, seed: int) -> None:
        self.sequences, self.schema, self.withheld = sequences, schema, withheld
        self.rng = np.random.default_rng(seed)
        self.target_weight = sequences.target_weight * mark_first_times(sequences.events)  # (E,)
        self.missing_user = encode_missing(schema.user_features)
        self.missing_context = encode_missing(schema.context_features)

    def __len__(self) -> int:
        return len(self.sequences.user_ids)

    def __getitem__(self, user: int) -> Sample:
        events, rng = self.sequences.events, self.rng
        begin, stop = int(events.offsets[user]), int(events.offsets[user + 1])
        start = max(begin, stop - self.schema.history_length)
        span, n = slice(start, stop), stop - start
        times, weights = events.time[span], self.target_weight[span].astype(np.float32)  # (n,), (n,)
        recency = np.diff(times, prepend=times[:1])  # (n,)
        recency[rng.random(n) < self.withheld.time] = 0
        if start > begin:
            weights[0] = 0
        context = _hide(self.sequences.context, span, rng.random(n) < self.withheld.context, self.missing_context)
        row = slice(user, user + 1)
        person = _hide(self.sequences.user, row, rng.random(1) < self.withheld.user, self.missing_user)
        arrays = {
            "history_rows": events.item_row[span],
            "history_events": events.event[span],
            "history_weights": standardise_weight(events.weight[span], self.schema),
            "history_times": times,
            "history_groups": np.arange(1, n + 1),
            "history_lengths": np.array(n),
            "context_codes": context.codes,
            "context_values": context.values,
            "user_codes": person.codes[0],
            "user_values": person.values[0],
            "target_weights": weights,
            "sees_history": rng.random(n) >= self.withheld.history,
            "recency": recency,
        }
        return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}  # its own, to write to


def _hide(encoded: EncodedFeatures, span: slice, is_hidden: np.ndarray, missing: EncodedFeatures) -> EncodedFeatures:
    codes, values = encoded.codes[span].copy(), encoded.values[span].copy()
    codes[is_hidden], values[is_hidden] = missing.codes, missing.values
    return EncodedFeatures(codes, values)


def collate(samples: list[Sample]) -> WindowBatch:
    """Pad samples to a batch."""

    def pad(name: str) -> Tensor:
        return pad_sequence([sample[name] for sample in samples], batch_first=True)  # (B, L, ...)

    arrays = {name: pad(name) for name in _OF_EVENTS}
    arrays |= {name: torch.stack([sample[name] for sample in samples]) for name in _OF_USER}  # each (B, ...)
    rest = ("history_rows", "context_codes", "context_values", "target_weights", "sees_history", "recency")
    return WindowBatch(arrays, *(pad(name) for name in rest))
