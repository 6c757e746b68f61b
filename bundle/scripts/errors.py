"""What went wrong, as a user can mend it."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch


class InvalidImageError(ValueError):
    """An image that can't be processed. The message names the file, what was wrong and what is allowed."""


class ExhaustedError(RuntimeError):
    """Memory, disk or open files ran out. The message says where, and what is kept."""


def cause_of(error: BaseException) -> BaseException:
    """What went wrong, without the frames that MONAI puts around it."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None and not isinstance(error, ExhaustedError):
        error = error.__cause__
    return error


def message_of(error: BaseException) -> str | None:
    """What a user can do something about, a line for each; None for a fault of the program's, which needs its traceback.

    That is what our own code refuses, what the operating system refuses, and a value that a component of the config can't
    be made with.
    """
    cause = cause_of(error)
    # of several paragraphs, the others are MONAI's advice and the traceback of a missing package
    text = " ".join(str(cause).strip().split("\n\n")[0].split()) or type(cause).__name__
    if isinstance(cause, (OSError, ExhaustedError)):
        return text
    trace = cause.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    ours = trace is not None and Path(__file__).parent in Path(trace.tb_frame.f_code.co_filename).parents
    if isinstance(cause, ValueError) and ours:
        return str(cause)
    if isinstance(cause, ValueError) and "is not defined in the config" in text:
        return f"{text} Name the config files that this one lies over too, before it."
    wrapper = error
    while isinstance(wrapper, RuntimeError) and wrapper.__cause__ is not None:
        if "instantiate" in str(wrapper) and isinstance(cause, (TypeError, ValueError, RuntimeError, ImportError)):
            return f"{str(wrapper).splitlines()[0].rstrip('.')}: {text}"
        wrapper = wrapper.__cause__
    return None


def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An excepthook: one line for what a user can mend and for Ctrl-C, Python's traceback for all else.

    Raises:
        SystemExit: of Ctrl-C, with status 130; Python itself would end by the signal.
    """
    if isinstance(error, KeyboardInterrupt):
        print("Stopped. What was finished is kept; the same command, without --overwrite, goes on.", file=sys.stderr)
        raise SystemExit(130)
    message = message_of(error)
    if message is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"ERROR: {message}", file=sys.stderr)


EXHAUSTED = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""The errors of the operating system that are the machine's and not the file's."""
_NO_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory|DefaultCPUAllocator")


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _lacks_memory(error: BaseException) -> bool:
    # on the CPU, torch says so in words only
    said = isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    return said or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def out_of_memory(error: BaseException) -> bool:
    """Whether this, or what it came from, is a lack of memory, which is not the image's fault."""
    return any(_lacks_memory(cause) for cause in _causes(error))


def out_of_resources(error: BaseException) -> BaseException | None:
    """What of an error and its causes says that memory, disk or files ran out, which is not the image's fault."""
    for cause in _causes(error):
        if _lacks_memory(cause) or isinstance(cause, OSError) and cause.errno in EXHAUSTED:
            return cause
    return None
