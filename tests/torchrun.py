"""Several processes on this machine, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def torchrun(command: Sequence[str], ranks: int, *options: str) -> list[str]:
    """A command of `python -m`, on so many ranks."""
    assert command[:2] == [sys.executable, "-m"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *options]
    return [*launch, "-m", *command[2:]]


def machines(command: Sequence[str], number: int, port: int) -> list[str]:
    """The same on so many machines with one rank each, as it is typed on each of them; here all are this one."""
    one = torchrun(command, 1, f"--nnodes={number}", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}")
    one.remove("--standalone")
    return one


def environment(**more: str) -> dict[str, str]:
    """On the CPU, with a thread for each."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": "", **more}


def said(command: Sequence[str], folder: Path, status: int = 0, **more: str) -> str:
    """What a command prints, whose status is known, with more in its environment."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment(**more), timeout=900)
    output = done.stdout + done.stderr
    assert done.returncode == status, output[-4000:]
    return output
