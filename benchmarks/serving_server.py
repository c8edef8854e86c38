# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The process of `uniwetok serve` that `serving.py` measures, and the numbers of its `/metrics`."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
from prometheus_client.parser import text_string_to_metric_families


ROOT = Path(__file__).resolve().parents[1]
SECONDS_TO_START = 600  # Ray and several replicas on a slow machine
SECONDS_TO_STOP = 150  # more than the server's own limit for those that still run
REPLICA = "ray::ServeReplica"  # how Ray calls the process of a replica


@dataclass
class Server:
    """A server that runs: its process, its address without a path, and what it prints."""

    process: subprocess.Popen
    address: str
    log: Path

    def numbers(self) -> dict[tuple[str, ...], float]:
        """What `/metrics` says, by name and values of labels."""
        text = httpx2.get(f"{self.address}/metrics", timeout=60, trust_env=False).text
        families = text_string_to_metric_families(text)
        return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}

    def replicas(self) -> list[psutil.Process]:
        """The processes of Ray's replicas."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[:1] and process.cmdline()[0].startswith(REPLICA):
                    found.append(process)
        return found

    def printed(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_until_idle(self, seconds: float = 60) -> float:
        """Waits until nothing waits or runs in it; the number of requests that still do after `seconds`."""
        end = time.monotonic() + seconds
        while (left := self._num_in_it()) and time.monotonic() < end:
            time.sleep(0.1)
        return left

    def _num_in_it(self) -> float:
        numbers = self.numbers()
        return numbers["uniwetok_requests_waiting",] + numbers["uniwetok_requests_running",]


@contextlib.contextmanager
def running_server(*words: str) -> Iterator[Server]:
    """`uniwetok serve` with these `words`, on a free port, until SIGTERM at the end.

    Raises:
        RuntimeError: when it does not start, or does not stop by itself; with the last of what it printed.
    """
    path = f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, "-m", "uniwetok_hf", "serve", *words, "--port", "0"]
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        log = Path(folder) / "log"
        with open(log, "w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"PYTHONPATH": path})
        server = Server(process, "", log)
        try:
            server.address = _wait_for_address(server)
            yield server
        except BaseException:
            _stop(process)
            raise
        if code := _stop(process):
            raise RuntimeError(f"the server ended with the exit code {code}: {server.printed()[-2000:]}")


def _wait_for_address(server: Server) -> str:
    end = time.monotonic() + SECONDS_TO_START
    while server.process.poll() is None and time.monotonic() < end:
        if found := re.search(r" at (http://\S+)/v1", server.printed()):
            with contextlib.suppress(httpx2.TransportError):  # printed before it listens
                httpx2.get(f"{found[1]}/health", trust_env=False)
                return found[1]
        time.sleep(0.1)
    raise RuntimeError(f"the server does not start: {server.printed()[-2000:]}")


def _stop(process: subprocess.Popen) -> int:
    """The exit code after SIGTERM, or after SIGKILL where that does not help."""
    process.terminate()
    try:
        return process.wait(SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
