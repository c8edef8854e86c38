# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Signals that ask long work to stop: SIGINT (Ctrl-C) and SIGTERM (a scheduler that takes the machine back).

The first one is noted, and the work ends where it can go on later, with [`Stopped`]. A second Ctrl-C ends it at once.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command can be run again and goes on


class Stopped(KeyboardInterrupt):
    """Raised by work that ended early because of a signal and is saved; the command exits with [`EXIT_CODE`]."""


def leave_signals() -> None:
    """Ignores both signals in this process, which another one has started: they reach all processes of a group, and
    that one decides when the work ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def signals_set(stop: threading.Event, announcement: str) -> Iterator[None]:
    """Inside the block SIGINT and SIGTERM set `stop` and print `announcement` on stderr, on the first process only.
    When `stop` is set already, SIGINT raises `KeyboardInterrupt`. A signal that the process ignores stays ignored, as
    SIGINT in the background of a script. Outside of the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number, frame):
        if stop.is_set():
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return  # schedulers may repeat SIGTERM
        stop.set()
        if os.environ.get("RANK", "0") == "0":
            with contextlib.suppress(OSError):  # not by `print`, which the signal may have interrupted
                os.write(2, f"\n{announcement}\n".encode())

    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
