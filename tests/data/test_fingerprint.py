from __future__ import annotations

import numpy as np
import pytest
import torch
from datamodules.fingerprint import fingerprint
from serve.encode import EncodedFeatures

CODES = np.arange(15).reshape(3, 5)
VALUES = np.arange(21, dtype=np.float32).reshape(3, 7)


def test_the_same_data_has_the_same_fingerprint():
    left, right = (EncodedFeatures(CODES.copy(), VALUES.copy()) for _ in range(2))
    assert fingerprint(left, {"a": [1, "b", None]}) == fingerprint(right, {"a": [1, "b", None]})
    assert (
        fingerprint(VALUES)
        == fingerprint(torch.from_numpy(VALUES))
        == fingerprint(np.asfortranarray(VALUES))
    )


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (CODES, CODES + 1),
        (CODES, CODES.T),
        (CODES, CODES.astype(np.int32)),
        (np.array(["a", "bc"], dtype=object), np.array(["ab", "c"], dtype=object)),
        (np.array(["7"], dtype=object), np.array([7], dtype=object)),
        (np.zeros((0, 3)), np.zeros((3, 0))),
        (np.zeros((0, 3)), np.zeros((0, 3), np.int64)),
        (["a", "b"], ["ab"]),
        (["a", ["b"]], ["a", "b"]),
        ({"a": 1}, {"b": 1}),
        (EncodedFeatures(CODES, VALUES), EncodedFeatures(CODES, VALUES[:, ::-1])),
        ((1,), (True,)),
    ],
)
def test_other_data_has_another(left, right):
    assert fingerprint(left) != fingerprint(right)
