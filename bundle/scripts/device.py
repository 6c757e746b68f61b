"""Where the networks run, and in which precision."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sysconfig
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU; of the processes that torchrun starts on a machine, each has its own GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda")


def checked(device: torch.device | str) -> torch.device:
    """A device that is there, as far as CPU and CUDA go.

    Raises:
        ValueError: there is no such GPU on this machine, or it is no name of a device.
    """
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    gpus = torch.cuda.device_count()
    if found is None or found.type == "cuda" and (found.index or 0) >= gpus:
        there = ", ".join(["cpu", *(f"cuda:{n}" for n in range(gpus))])
        raise ValueError(
            f"device must be one of those that PyTorch finds on this machine ({there}), got {str(device)!r}."
        )
    return found


def fastest_precision(device: torch.device | str) -> str:
    """The precision that the networks run fastest in, "bfloat16" or "float32".

    bfloat16 pays where the hardware multiplies it. Where it does not, as on CPUs without AVX512-BF16, AMX or their Arm
    counterparts, PyTorch converts back and forth at twice the time of float32 and more.

    Raises:
        ValueError: see `checked`.
    """
    if checked(device).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        can = torch.cpu.get_capabilities()
        native = any(can.get(feature, False) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if native else "float32"


def compilation_pays(device: torch.device | str, images: int) -> bool:
    """Whether `torch.compile` makes a training of so many images faster, its own minute or two included.

    On a CPU it fuses what lies between the convolutions, if there is what it compiles with: a C++ compiler and the headers of
    Python. Inference gains nothing from it. On GPUs it was not measured.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    headers = Path(sysconfig.get_paths()["include"], "Python.h").is_file()
    return torch.device(device).type == "cpu" and images >= 50_000 and compiler is not None and headers


def default_workers(device: torch.device | str) -> int:
    """Processes that read batches: none on a CPU, which the networks have to themselves, and some that feed a GPU."""
    processors = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(8, max(1, processors - 1)) if torch.device(device).type == "cuda" else 0


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """A context in which the networks run in `precision`; "float32" also switches a caller's autocast off.

    Raises:
        ValueError: `precision` is not "float32", "bfloat16" or "float16".
    """
    if precision not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"precision must be float32, bfloat16 or float16, got {precision!r}.")
    low = torch.bfloat16 if precision == "float32" else getattr(torch, precision)
    return torch.autocast(torch.device(device).type, low, enabled=precision != "float32")


class GroupNorm(torch.nn.GroupNorm):
    """PyTorch's, on contiguous tensors inside a network in channels_last.

    On a CPU the gradient of PyTorch's group norm in channels_last is slow: it took half of a classifier's gradient in bfloat16
    (torch 2.13). The copies to the other layout and back cost less than a tenth of that.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `torch.nn.GroupNorm`; ``(N, C, H, W)`` comes out in channels_last."""
        y = F.group_norm(input.contiguous(), self.num_groups, self.weight, self.bias, self.eps)
        return y.contiguous(memory_format=torch.channels_last) if y.ndim == 4 else y


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Let memory that was freed stay with the process, on Linux with the GNU C library.

    A layer's output has tens of megabytes. By default they go back to the system when they are freed, and the next layer's are
    zeroed by it, page by page: a tenth of the diffusion network's time and more. The peak is the same.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt, m_trim_threshold, m_mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3
        mallopt(m_mmap_threshold, 32 * 2**20)  # the highest that it takes
        mallopt(m_trim_threshold, 2**31 - 1)


def in_fastest_layout(network: torch.nn.Module, device: torch.device | str) -> torch.nn.Module:
    """`network`, changed in place, on `device`, in the layout that convolutions are fastest in, on CPUs up to threefold.

    Raises:
        ValueError: see `checked`.
    """
    if checked(device).type == "cpu":
        keep_freed_memory()
        for module in network.modules():
            if type(module) is torch.nn.GroupNorm:
                module.__class__ = GroupNorm
    of_volumes = any(parameter.ndim == 5 for parameter in network.parameters())
    layout = torch.channels_last_3d if of_volumes else torch.channels_last
    return network.to(device, memory_format=layout)  # type: ignore[call-overload]  # stubs lack it
