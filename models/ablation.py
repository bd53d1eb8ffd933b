"""Measure by the validation whether lists are better with the features of a side than without.

A request may lack its features, and training withholds them at times. So they are withheld from all
validation requests, and the same requests are compared. A difference around 0 says that the towers
do not use them; what a training without them would give is not measured. Nor are item features,
which are for new items: a validation has too few of these.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from datamodules.batch import RequestBatch
from models.validation import Figures, Validation, estimate_error, mean_of_views
from serve.encode import encode_features
from serve.kinds import Feature
from serve.schema import Schema


def compare_sides(
    validation: Validation, schema: Schema, rank: Callable[[Validation], Figures]
) -> dict[str, dict[str, float]]:
    """Compare the lists of the validation with those of requests without features of a side.

    Args:
        validation: with all features, of towers as they are served.
        schema: declares the features.
        rank: adds item-item weights to the scores of the towers.

    Returns:
        `user` or `context` -> NDCG@10 with (`ndcg`) and `without`, and the standard `error` of the
        difference.
    """
    sides = {"user": schema.user_features}
    if schema.repeats == "exclude":  # else these requests look ahead, without a context
        sides["context"] = schema.context_features

    figures = rank(validation)
    compared = {}
    for side, features in sides.items():
        if features:
            batches = [withhold(batch, side, features) for batch in validation.batches]
            without = rank(Validation(validation.towers, batches))
            compared[side] = {
                "ndcg": mean_of_views(figures),
                "without": mean_of_views(without),
                "error": estimate_error(without, figures),
            }

    return compared


def withhold(
    batch: RequestBatch, side: str, features: tuple[Feature, ...]
) -> RequestBatch:
    """Return the requests without the features of a side."""
    missing = encode_features(features, {}, len(batch.history_rows))
    arrays = dict(batch.arrays)
    arrays[f"{side}_codes"] = torch.from_numpy(missing.codes)  # (B, C)
    arrays[f"{side}_values"] = torch.from_numpy(missing.values)  # (B, V)

    if side == "context":  # no event of the history is in the same one
        arrays["history_matches"] = torch.zeros_like(arrays["history_matches"])
    return batch._replace(arrays=arrays)
