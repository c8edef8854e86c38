"""What a file of tests may leave behind: nothing that runs or is open."""

import gc
import sys
import threading
import time
import traceback
from pathlib import Path

import psutil


# Threads that libraries start once and keep for the life of the process; a dummy is one of C++ that once ran Python.
KEPT = ("tqdm_monitor", "TMonitor", "asyncio_", "AnyIO worker", "Prefetcher", "Dummy-")
KEPT_FUNCTIONS = ("(_run_router_event_loop)", "(_poll_wrapper)")  # of Ray Serve, and of gRPC in it
RAY_LOGS = "/ray/session_"  # which Ray, too, keeps open


def running() -> set[str]:
    """Threads, child processes and open files of this process, by name and number."""
    process = psutil.Process()
    threads = {f"thread {thread.name}" for thread in threading.enumerate() if thread.is_alive()}
    children = {f"process {child.pid}: {' '.join(child.cmdline())[:200]}" for child in children_of(process)}
    files = {f"open file {file.path} ({file.fd})" for file in process.open_files() if RAY_LOGS not in file.path}
    threads = {name for name in threads if not name.removeprefix("thread ").startswith(KEPT)}
    return {name for name in threads if not name.endswith(KEPT_FUNCTIONS)} | children | files


def children_of(process: psutil.Process) -> list[psutil.Process]:
    children = [child for child in process.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    # Python's own, once for a process that starts others with multiprocessing.
    return [child for child in children if "multiprocessing.resource_tracker" not in " ".join(child.cmdline())]


def left_since(before: set[str], seconds: float = 5.0) -> set[str]:
    """What runs now and did not run `before`; sleeps for up to `seconds` until it has ended. Collecting the garbage of
    a long session takes seconds, too, in which no other thread runs: they do not count."""
    gc.collect()
    for turn in range(round(seconds / 0.05)):
        if not (left := running() - before):
            return left
        time.sleep(0.05)
        if turn % 20 == 19:
            gc.collect()
    return {name + stands_at(name.removeprefix("thread ")) for name in left}


def stands_at(name: str) -> str:
    """Where a thread of that name is, from the outside in."""
    frames = sys._current_frames()
    for thread in threading.enumerate():
        if thread.name == name and thread.ident in frames:
            calls = traceback.extract_stack(frames[thread.ident])
            return " in " + ", ".join(f"{call.name} ({Path(call.filename).name}:{call.lineno})" for call in calls)
    return ""
