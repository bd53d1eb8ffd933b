"""Train on several devices of one machine, each in a process of its own.

The processes are spawned: CUDA and threads survive no fork. The one that starts them only waits;
when one of them fails, or a signal ends it, all of them end.

Lightning averages their gradients (DDP). Losses are divided by the mean of the processes' weights,
so that this average is the gradient of the whole batch.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import chain
from multiprocessing import active_children, get_context, parent_process
from typing import Any

import torch
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from pytorch_lightning.strategies import DDPStrategy
from rich import get_console
from torch import Tensor, distributed

from datamodules.batch import find_place
from serve.errors import SchemaError, say

JOINS = "BASCULE_JOINS"  # variable of a process that trains with others


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


def gather(own: list[Any]) -> list[Any]:
    """Return the parts of all processes, rank by rank."""
    _, n_processes = find_place()
    by_rank = [own] * n_processes
    if n_processes > 1:
        distributed.all_gather_object(by_rank, own)
    return list(chain.from_iterable(by_rank))


# ---- the process that waits, and those that work


def run_in_processes(job: Callable[[], Any], n_processes: int) -> Any:
    """Do a job in several processes.

    Args:
        job: what torch can save, of an importable module.
        n_processes: how many do it.

    Returns:
        what one of them returned.

    Raises:
        SchemaError: one was killed; other errors are those that one of them raised.
    """
    saved = io.BytesIO()  # a tensor that is sent as one takes a file descriptor
    torch.save(job, saved)
    variables = {JOINS: "yes", "MASTER_PORT": str(find_free_network_port())}
    n_threads = max(1, torch.get_num_threads() // n_processes)
    others = set(active_children())

    with ProcessPoolExecutor(n_processes, get_context("spawn")) as pool:
        try:
            works = [
                pool.submit(work, saved.getvalue(), str(rank), variables, n_threads)
                for rank in range(n_processes)
            ]
            outcomes = [done.result() for done in as_completed(works)]
        except RuntimeError as error:  # of the pool, or of the others' connections
            raise SchemaError(
                f"a training process was ended ({say(error)}): nothing is published; --ckpt_path "
                "last resumes; a script needs: if __name__ == '__main__'"
            ) from error
        finally:
            for process in set(active_children()) - others:
                process.kill()  # checkpoints are whole at any moment

    return outcomes[0]


def work(saved: bytes, rank: str, variables: Mapping[str, str], n_threads: int) -> Any:
    """Do a saved job as one of several processes, of which the first prints."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the one that waits
    os.environ.update(variables, LOCAL_RANK=rank)
    torch.set_num_threads(n_threads)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    get_console().quiet = rank != "0"
    # These bytes come from the memory of the process that started this one, never from a file.
    job = torch.load(io.BytesIO(saved), weights_only=False)
    return job()


def _end_with_parent() -> None:
    parent_process().join()  # type: ignore[union-attr]
    os._exit(1)
