"""Commands of `uniwetok` in two processes, started as `accelerate launch` does, but without its own process; and
commands on two nodes, each with a `torchrun` of its own, as a cluster starts them.

As a program, it runs each of its arguments, a JSON list of the words of a command, one after the other."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil


TIMEOUT = 600  # seconds
# As `accelerate launch` with a configuration of FSDP 2, and our switch, since there are no GPUs.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "UNIWETOK_FSDP_ON_CPU": "1",
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def processes(count: int) -> dict[str, str]:
    """What processes that work together find in their environment, besides the rank of each."""
    world = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    return world | {"MASTER_PORT": str(free_port())}


def launch_two(*command: str, **environment) -> list[str]:
    """What two processes of a command print."""
    return launch(2, *command, **environment)


def launch(count: int, *command: str, **environment) -> list[str]:
    """What so many processes of a command print."""
    environment |= processes(count)
    started = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
    try:
        with ThreadPoolExecutor(count) as threads:  # neither waits for the other's output to be read
            outputs = list(threads.map(lambda process: process.communicate(timeout=TIMEOUT), started))
    finally:
        for process in started:
            process.kill()
            process.wait()
    errors = "".join(error[-3000:] for _, error in outputs)
    assert [process.returncode for process in started] == [0] * count, errors
    return [text for text, _ in outputs]


def commands_on_two(*commands: list[str]) -> list[str]:
    """What two processes of the commands print."""
    return launch_two(sys.executable, __file__, *(json.dumps([str(word) for word in words]) for words in commands))


class Nodes:
    """`python -m MODULE WORDS...` on two nodes of one process each, in the folders `places`: `torchrun` by `torchrun`,
    on this machine. What a node prints is in `node-<rank>.log` of its place. As a block, it leaves no process.

    `restarts` are those that each `torchrun` may try; by `meets_by="c10d"` nodes find their ranks themselves."""

    def __init__(
        self, places: list[Path], *module: str, restarts: int = 0, meets_by: str = "static", **environment: str
    ):
        port, self.logs = free_port(), []
        self.launchers: list[subprocess.Popen] = []
        for rank, place in enumerate(places):
            place.mkdir(exist_ok=True)
            self.logs.append(place / f"node-{rank}.log")
            world = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", str(restarts)]
            meeting = {
                "static": ["--node-rank", str(rank), "--master-addr", "127.0.0.1", "--master-port", str(port)],
                "c10d": ["--rdzv-backend", "c10d", "--rdzv-id", "run", "--rdzv-endpoint", f"127.0.0.1:{port}"],
            }[meets_by]
            with open(self.logs[-1], "w") as log:
                self.launchers.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "torch.distributed.run", *world, *meeting, "-m", *module],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        cwd=place,
                        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
                    )
                )

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_) -> None:
        for rank in range(2):
            self.kill(rank)

    def kill(self, rank: int) -> None:
        """The end of a machine: SIGKILL to `torchrun` and to the process that it started, which would outlive it."""
        launcher = self.launchers[rank]
        if launcher.poll() is None:
            for process in (launcher, *self.workers(rank)):
                process.kill()
            launcher.wait()

    def workers(self, rank: int) -> list[psutil.Process]:
        """The processes that `torchrun` of a node has started."""
        return psutil.Process(self.launchers[rank].pid).children(recursive=True)

    def wait(self) -> list[int]:
        """Exit codes, when both have ended."""
        return [launcher.wait(timeout=TIMEOUT) for launcher in self.launchers]

    def printed(self, rank: int) -> str:
        return self.logs[rank].read_text()


if __name__ == "__main__":
    import torch

    from uniwetok_hf.cli.main import main

    torch.set_num_threads(1)
    for words in sys.argv[1:]:
        if code := main(json.loads(words)):
            sys.exit(code)
