# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The cluster that `--engine ray` works on (extra `ray`): that of `RAY_ADDRESS`, or a Ray that is started on this
machine for as long as it takes. A cluster that happens to run here may be somebody else's, so it is joined with
`RAY_ADDRESS=auto` only.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator

from ..files import one_line


@contextlib.contextmanager
def connected(num_cpus: int) -> Iterator:
    """The module `ray`, connected to a cluster in the block; a connection of this process that is there is left as it
    is.

    Args:
        num_cpus: of a Ray that is started here, where it has not more.

    Raises:
        OSError: when Ray can't be reached or started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS"):
        check_address(address)
    else:
        num_cpus = max(num_cpus, os.cpu_count() or 1)
        options |= {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if in_main else None
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises nearly anything
        raise OSError(f"Ray can't be reached or started: {one_line(error)}") from error
    try:
        if in_main:  # it takes SIGTERM for itself
            signal.signal(signal.SIGTERM, handler)
        yield ray
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """
    Raises:
        OSError: when nobody answers at an address of a host and a port. (Ray tries for minutes.)
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise OSError(f"RAY_ADDRESS={address}: no Ray answers there ({one_line(error)})") from error
