"""Train on several devices of one machine, each in a process of its own.

The processes are fresh interpreters: CUDA and threads survive no fork. Each holds a pipe from the
process that started it, and ends when that pipe does, so that none is left behind. That process
only waits; when one of the others ends early, or a signal comes, it ends them all.

Lightning averages their gradients (DDP). Losses are divided by the mean of the processes' weights,
so that this average is the gradient of the whole batch.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from pytorch_lightning.strategies import DDPStrategy
from rich import get_console
from torch import Tensor, distributed

from datamodules.batch import find_place
from serve.errors import BundleError, SchemaError, say

JOINS = "BASCULE_JOINS"  # variable of a process that trains with others
JOB = "job.pt"
OUTCOME = "outcome.json"
POLL_SECONDS = 0.1
GRACE_SECONDS = 2.0  # a process that lost another is ended before it prints an error
ENDED = "a training process ended early: nothing is published; --ckpt_path last resumes"


# ---- among the processes


def joins() -> bool:
    """Return whether this process was started to train with others."""
    return JOINS in os.environ


def make_strategy() -> DDPStrategy:
    """Make the strategy of a process that trains with others."""
    # Absent features leave parameters without a gradient, and the catalogue never changes. So told,
    # DDP also keeps its first buckets: after a restart, sums are formed in the same order.
    return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)


def mean_over_processes(value: Tensor) -> Tensor:
    """Average a new constant over the processes, all of which call this."""
    _, n_processes = find_place()
    if n_processes > 1:
        distributed.all_reduce(value)
    return value / n_processes


def gather_in_turns(own: list[Any]) -> Iterator[Any]:
    """Yield what the processes have, as many each: the first of each, the second of each, ..."""
    _, n_processes = find_place()
    by_rank = [own] * n_processes
    if n_processes > 1:
        distributed.all_gather_object(by_rank, own)
    return chain.from_iterable(zip(*by_rank, strict=True))


# ---- the process that waits


def run_in_processes(job: Callable[[], Any], n_processes: int, folder: Path) -> Any:
    """Do a job in several processes.

    Args:
        job: what torch can save, of an importable module; returns JSON values.
        n_processes: how many do it.
        folder: where the job is left meanwhile.

    Returns:
        what rank 0 returned.

    Raises:
        SchemaError: one of them failed or was ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcome = folder / OUTCOME
    outcome.write_text(json.dumps(ENDED))
    torch.save(job, folder / JOB)
    variables = {
        **os.environ,
        JOINS: "yes",
        "MASTER_PORT": str(find_free_network_port()),
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // n_processes)),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", f"from {__name__} import work; work()"]
    processes = [
        subprocess.Popen(  # noqa: S603
            [*command, str(folder)],
            stdin=subprocess.PIPE,
            env={**variables, "LOCAL_RANK": str(rank)},
            start_new_session=True,  # signals of a terminal are for this process
        )
        for rank in range(n_processes)
    ]

    try:
        codes: list[int | None] = [None]
        while None in codes and not any(codes):
            time.sleep(POLL_SECONDS)
            codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()  # checkpoints are whole at any moment
            process.communicate()
        (folder / JOB).unlink()

    content = json.loads(outcome.read_bytes())
    if isinstance(content, str):
        raise SchemaError(content)
    return content


# ---- a process of several


def work() -> None:
    """Do the job that lies in a folder, and leave its outcome there, or its fault."""
    threading.Thread(target=_end_with_pipe, daemon=True).start()
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    is_first = os.environ["LOCAL_RANK"] == "0"
    get_console().quiet = not is_first
    folder = Path(sys.argv[1])
    # The process that started this one wrote it.
    job = torch.load(folder / JOB, weights_only=False)

    try:
        content = job()
        if is_first:
            (folder / OUTCOME).write_text(json.dumps(content))
    except (SchemaError, BundleError, ArithmeticError, MemoryError, OSError) as error:
        (folder / OUTCOME).write_text(json.dumps(say(error)))
        sys.exit(1)
    except RuntimeError:
        time.sleep(GRACE_SECONDS)
        raise


def _end_with_pipe() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)
