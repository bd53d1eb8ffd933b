"""Memory that a step frees stays with the process: the next step would get it back page by page, and pay for each."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST, _KEPT = 32 << 20, 512 << 20
"""Bytes: the largest block that glibc takes from a heap, and how much of a heap stays when it is free."""


def keep_freed_memory() -> None:
    """Let the C library reuse freed blocks of up to 32 MiB, from now on, in this process.

    Where the library is not glibc nothing happens: mallopt(3) is its own.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)
