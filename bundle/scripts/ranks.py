"""Several processes at one task, as torchrun starts them, on one machine or many: what ignite's `distributed` lacks for us.

Each is a *rank*. The first is 0: it writes what they share and finds what they all need. A process alone is rank 0 of one, and
nothing here does anything then. A rank that dies ends the others, through torchrun, which may start them all again.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import ignite.distributed as idist
import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from .checks import is_true

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long a rank waits for what another one prepares. One that died is noticed by torchrun, at once."""


def started() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if distributed.is_torchelastic_launched() else 1


def note(what: str) -> None:
    """Let `was_noted` know, also of the processes that torchrun starts again as one of them died."""
    if distributed.is_torchelastic_launched():
        _store().set(what, "noted")


def was_noted(what: str) -> bool:
    """Whether `note` was called since torchrun started; False without it.

    What it counts itself says less: machines count their own restarts, and a process may die before it has done anything.
    """
    return distributed.is_torchelastic_launched() and bool(_store().check([what]))


def _store() -> distributed.TCPStore:
    """What torchrun keeps for all processes, and for all their starts."""
    return distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)


def join(device: torch.device | str = "cpu") -> None:
    """Meet the others that torchrun started, once; rank 0 alone writes log lines from then on, up to warnings.

    In ``multi_gpu_train.json`` it is the second entry of ``run``, before what needs it: MONAI resolves these in turn, and can
    import the bundle from there on only.

    Args:
        device: that tensors are exchanged from: NCCL on a GPU, else gloo.
    """
    if started() > 1 and idist.get_world_size() == 1:
        # ignite would go by SLURM's numbers, in which a process is what torchrun is, one a machine
        os.environ.pop("SLURM_JOB_ID", None)
        backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
        store = distributed.PrefixStore(meet(store, rank, size), store)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        atexit.register(leave)
        end_with_parent()
        if idist.get_rank() > 0:
            logging.disable(logging.INFO)


def meet(store: distributed.Store, rank: int, size: int) -> str:
    """A name that all ranks agree on, and that no start before this one had: the prefix of what they put into the store.

    torchrun keeps one store for all its starts. Without a prefix a rank may read there where a dead rank listened.
    What torchrun counts is no such name, as machines count their own restarts.
    """
    if rank == 0:
        name = uuid.uuid4().hex
        store.set("start", name)
        for other in range(1, size):
            store.set(f"{name}/{other}/{store.get(f'{name}/{other}').decode()}", "welcome")
        return name
    mine = uuid.uuid4().hex
    while True:
        name = store.get("start").decode()
        store.set(f"{name}/{rank}", mine)
        try:
            # rank 0 of a start before answers no more
            store.wait([f"{name}/{rank}/{mine}"], timedelta(seconds=1))
        except distributed.DistStoreError:
            continue
        return name


def end_with_parent() -> None:
    """Have Linux kill this process once torchrun is gone; one that was killed itself tells its ranks nothing, which wait."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def leave() -> None:
    """End the threads that exchange tensors while Python can still take back what they hold; later that aborts the process."""
    gc.collect()  # a network that was trained on several ranks holds them too
    if distributed.is_initialized():
        distributed.destroy_process_group()


def of_first(work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, which alone does it, for all of them.

    Raises:
        SystemExit: on another rank, with status 1, where `work` fails; what it fails with is rank 0's to say.
    """
    if idist.get_world_size() == 1:
        return work()
    found: list[Any] = [False, None]
    try:
        if idist.get_rank() == 0:
            found = [True, work()]
    finally:
        distributed.broadcast_object_list(found)
    if not found[0]:
        raise SystemExit(1)
    done: T = found[1]
    return done


def each_once(items: Sequence[T]) -> Iterator[T]:
    """Of the items, each on one rank alone: the next one goes to whoever asks next, so that no rank waits for a slow one."""
    if idist.get_world_size() == 1:
        yield from items
        return
    # a counter in the store that they met at, of a name that no other count had before
    name = of_first(lambda: uuid.uuid4().hex)
    store = _store()
    while (n := store.add(name, 1) - 1) < len(items):
        yield items[n]


def is_silent(dry_run: bool | str) -> bool:
    """Whether this process leaves no files: one of a dry run, or another than rank 0."""
    return is_true(dry_run, "dry_run") or idist.get_rank() > 0
