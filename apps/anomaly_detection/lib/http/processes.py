"""Processes that the server begins, and that end with it."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from pathlib import Path

import psutil
from monailabel.utils.async_tasks.utils import background_executors, background_processes, stop_background_task

logger = logging.getLogger(__name__)

SERVER = "ANOMALY_DETECTION_SERVER"
"""The server's process id, in the environment of those that it begins."""


def end_tasks() -> None:
    """Once the server ends, end what it began: it would wait for it."""
    threading.main_thread().join()
    for executor in list(background_executors.values()):
        executor.shutdown(wait=False, cancel_futures=True)
    for method in list(background_processes):
        stop_background_task(method)


def end_with_server() -> None:
    """In a process that the server began, for a batch, training or scoring: end with the server, also if that was killed."""
    if SERVER not in os.environ or os.environ[SERVER] == str(os.getpid()):
        return
    server, parent = int(os.environ[SERVER]), os.getppid()

    def watch() -> None:
        while psutil.pid_exists(server) and os.getppid() == parent:
            time.sleep(1)
        logger.warning("the server has ended; so does this")
        os._exit(1)  # a batch's threads stop for nothing less

    threading.Thread(target=watch, daemon=True).start()


def environment_on_path() -> None:
    """Put the commands of this environment on the PATH: MONAI Label looks for dcmqi there, or downloads it."""
    here = str(Path(sys.executable).parent)
    if here not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PATH"))))
