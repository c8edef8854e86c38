"""Commands of `uniwetok` in two processes, started as `accelerate launch` does, but without its own process.

As a program, it runs each of its arguments, a JSON list of the words of a command, one after the other."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor


TIMEOUT = 600  # seconds


def launch_two(*command: str, **environment) -> list[str]:
    """What two processes of a command print."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        with ThreadPoolExecutor(2) as threads:  # neither waits for the other's output to be read
            outputs = list(threads.map(lambda process: process.communicate(timeout=TIMEOUT), processes))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    errors = "".join(error[-3000:] for _, error in outputs)
    assert [process.returncode for process in processes] == [0, 0], errors
    return [text for text, _ in outputs]


def commands_on_two(*commands: list[str]) -> list[str]:
    """What two processes of the commands print."""
    return launch_two(sys.executable, __file__, *(json.dumps([str(word) for word in words]) for words in commands))


if __name__ == "__main__":
    import torch

    from uniwetok_hf.cli.main import main

    torch.set_num_threads(1)
    for words in sys.argv[1:]:
        if code := main(json.loads(words)):
            sys.exit(code)
