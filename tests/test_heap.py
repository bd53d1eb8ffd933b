"""Memory that is freed and asked for again is not taken from the kernel again."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from models.heap import keep_freed_memory

STEPS = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from models.heap import keep_freed_memory
    keep_freed_memory()
def step():
    parts = [np.ones(1 << 17) for _ in range(24)]  # 1 MiB each
    return sum(part[0] for part in parts)
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
IS_GLIBC = hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def count_faults(how: str) -> int:
    run = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(not IS_GLIBC, reason="another C library")
def test_a_step_takes_no_new_pages():
    assert count_faults("keep") < 0.01 * count_faults("as it is")


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # without mallopt
    keep_freed_memory()
