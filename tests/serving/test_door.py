"""Refusals at the door reach clients that are still sending."""

import socket

import pytest
from tiny_mllm import with_random_weights
from tiny_models import build_tiny_pipeline


pytest.importorskip("fastapi", reason="needs the extra `serve`")

from running_server import serving  # noqa: E402

from uniwetok_hf.serving.service import ServerSettings  # noqa: E402


SIZE = 200_000  # bytes


@pytest.mark.parametrize("settings, status", [({"max_requests": 0}, 429), ({"max_body_bytes": SIZE - 1}, 413)])
def test_a_refusal_while_the_body_comes(settings, status):
    """Closing the connection would reset it, and the client may lose the answer."""
    pipe = build_tiny_pipeline()
    with_random_weights(pipe.mllm)
    head = f"POST /v1/images/edits HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n".encode()
    with serving(pipe, ServerSettings(**settings)) as (address, _):
        port = int(address.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client, client.makefile("rb") as answers:
            client.sendall(head + bytes(SIZE // 2))
            assert read_status(answers) == status
            client.sendall(bytes(SIZE // 2) + b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_status(answers) == 200


def read_status(answers) -> int:
    """Of the next answer, which is read whole."""
    [_, status, *_] = answers.readline().split()
    headers = [line.lower() for line in iter(answers.readline, b"\r\n") if line]
    [length] = [int(line.split(b":")[1]) for line in headers if line.startswith(b"content-length")]
    answers.read(length)
    return int(status)
