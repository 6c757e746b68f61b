"""Servers that run for as long as a block does."""

from __future__ import annotations

import base64
import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

HOST = "127.0.0.1"
LOGIN = {
    "MONAI_LABEL_DICOMWEB_USERNAME": "monailabel",
    "MONAI_LABEL_DICOMWEB_PASSWORD": secrets.token_urlsafe(24),
}
"""What Orthanc asks for, and the label server has in its environment: web pages that a browser on this machine shows reach
Orthanc's port, and could read, delete and shut down. New at each start."""
# a proxy that the environment names can't reach this machine's own loopback
open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
_servers: list[tuple[str, subprocess.Popen[bytes], Path]] = []
"""Those that run: their names and logs."""


class ServeError(RuntimeError):
    """A server can't be started or does not answer; the message says why and what to do."""


@contextmanager
def running(
    command: Sequence[str],
    *,
    name: str,
    ready: str,
    log: Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    login: Mapping[str, str] | None = None,
    timeout: float = 180.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers for as long as the block runs; it is ended with every process that it started.

    Args:
        command: starts it.
        name: for messages.
        ready: a URL on this machine that gives 200 once the server is up. Its port must be free before.
        log: the file for what the server prints.
        cwd: the folder that it runs in.
        env: what its environment has beside this one.
        login: as `LOGIN`, where it asks for one.
        timeout: for the start, in seconds.

    Raises:
        ServeError: the port is taken, the server died or was not up in time; the message quotes its last lines.
    """
    port = int(ready.removeprefix(f"http://{HOST}:").partition("/")[0])
    with socket.socket() as probe:
        # as the servers do, or the port would count as taken for a minute after each stop
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ServeError(f"{name}: port {port} can't be used ({error.strerror}); choose another one.") from error
    with log.open("wb") as output:
        # a group of its own: Ctrl-C reaches this process only, which then ends the servers one after the other
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    try:
        end = time.monotonic() + timeout
        while not answers(ready, login):
            if process.poll() is not None or time.monotonic() > end:
                raise _stopped(name, process, log)
            time.sleep(0.3)
        _servers.append((name, process, log))
        yield process
    finally:
        _servers[:] = [server for server in _servers if server[1] is not process]
        _end(process)


def _stopped(name: str, process: subprocess.Popen[bytes], log: Path) -> ServeError:
    status = process.poll()
    what = "was not up in time" if status is None else f"ended with status {status}"
    last = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
    return ServeError(f"{name} {what}. The end of its log, {log}:\n{last}")


def watch() -> None:
    """Wait until one of the servers ends by itself.

    Raises:
        ServeError: always; it quotes the last lines of that server's log.
    """
    while True:
        for server in _servers:
            if server[1].poll() is not None:
                raise _stopped(*server)
        time.sleep(0.5)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=15)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
    finally:
        # also after a second Ctrl-C, and for what the server started and left
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def with_login(url: str, login: Mapping[str, str] | None, data: bytes | None = None) -> urllib.request.Request:
    """A request by who logs in so, see `LOGIN`."""
    request = urllib.request.Request(url, data)
    if login:
        pair = base64.b64encode(":".join(login.values()).encode()).decode()
        request.add_header("Authorization", f"Basic {pair}")
    return request


def answers(url: str, login: Mapping[str, str] | None = None) -> bool:
    """Whether this URL gives 200 to who logs in so, see `LOGIN`."""
    try:
        with open_url(with_login(url, login), timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False
