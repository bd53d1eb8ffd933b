"""Item vectors as a FAISS file, for whoever reads a bundle with FAISS."""

from __future__ import annotations

from pathlib import Path
from threading import Lock

import faiss
import numpy as np
from numpy.typing import NDArray

from serve.durable import write_file
from serve.errors import BundleError
from serve.item_vectors import check_vectors
from serve.layout import INDEX, VECTORS
from serve.top_k import Floats

_LIMITED = Lock()
"""Held while FAISS has our limit on what it reads: the limit is one of the whole process."""


def write_index(path: Path, vectors: Floats) -> None:
    """Write vectors (N, D) as `IndexFlatIP`.

    Raises:
        ValueError: not (N, D) float32 in C order, empty, or not finite.
        OSError: the disk is full or fails.
    """
    check_vectors(vectors)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    write_file(path, faiss.serialize_index(index).data)  # the writer of FAISS names no error of the disk


def check_file(content: NDArray[np.uint8], vectors: Floats) -> None:
    """Compare the content of a file, (size,) uint8, with the vectors (N, D) that it should hold.

    Raises:
        BundleError: the file is no flat inner-product index of these vectors.
    """
    stored = _deserialise(content)
    if type(stored) is not faiss.IndexFlatIP:
        raise BundleError(f"{INDEX} holds an index of type {type(stored).__name__}; expected IndexFlatIP")
    if (stored.ntotal, stored.d) != vectors.shape:
        shape = (stored.ntotal, stored.d)
        raise BundleError(f"{INDEX} holds vectors of shape {shape}; {VECTORS} of {vectors.shape}")
    payload = faiss.rev_swig_ptr(stored.get_xb(), vectors.size)
    if not np.array_equal(payload, vectors.reshape(-1)):
        raise BundleError(f"{INDEX} holds other vectors than {VECTORS}: export the bundle again")


def _deserialise(content: NDArray[np.uint8]) -> faiss.Index:
    """Read a FAISS file with a limit on what its header may claim."""
    with _LIMITED:
        before = faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_vector_byte_limit(2 * len(content))
        try:
            return faiss.deserialize_index(content)
        except RuntimeError as error:
            raise BundleError(f"{INDEX} is no FAISS index: {error}") from error
        finally:
            faiss.set_deserialization_vector_byte_limit(before)
