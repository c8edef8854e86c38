"""What passes the door, and what doesn't: slow and broken clients, keys, and the numbers of what was answered."""

import asyncio
import re
import socket
import time

import httpx2
import pytest
from tiny_mllm import with_random_weights
from tiny_models import build_tiny_pipeline


pytest.importorskip("fastapi", reason="needs the extra `serve`")

from running_server import serving  # noqa: E402

from uniwetok_hf.serving.service import ServerSettings  # noqa: E402


SIZE = 200_000  # bytes
JSON = b"Content-Type: application/json\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"


@pytest.fixture(scope="module")
def pipe():
    pipe = build_tiny_pipeline()
    with_random_weights(pipe.mllm)
    return pipe


def head(path: str, length: int, more: bytes = b"") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n".encode() + more + b"\r\n"


def connect(address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=20)


@pytest.mark.parametrize("settings, status", [({"max_requests": 0}, 429), ({"max_body_bytes": SIZE - 1}, 413)])
def test_a_refusal_while_the_body_comes(pipe, settings, status):
    """Closing the connection would reset it, and the client may lose the answer."""
    limits = ServerSettings(**settings)
    with serving(pipe, limits) as (address, _), connect(address) as client, client.makefile("rb") as answers:
        client.sendall(head("/v1/images/edits", SIZE) + bytes(SIZE // 2))
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


def numbers_of(address: str) -> dict[str, float]:
    text = httpx2.get(f"{address}/metrics").text
    return {name: float(value) for name, value in re.findall(r"^(uniwetok\S+) (\S+)$", text, re.MULTILINE)}


@pytest.mark.parametrize(
    "path, more, begun", [("/v1/images/generations", JSON, b"{"), ("/v1/images/edits", FORM, b"--b\r\n")]
)
def test_a_body_that_stops_coming_gives_its_place_back(pipe, path, more, begun):
    with serving(pipe, ServerSettings(max_requests=1, timeout=0.5)) as (address, _):
        with connect(address) as client, client.makefile("rb") as answers:
            client.sendall(head(path, 100, more) + begun)
            assert read_status(answers) == 408
        answer = httpx2.post(f"{address}/v1/images/generations", json={"prompt": ""})
        assert answer.status_code == 400


def test_an_upload_that_breaks_off_is_no_error_of_ours(pipe):
    with serving(pipe) as (address, _):
        with connect(address) as client:
            client.sendall(
                head("/v1/images/edits", 100, b"Content-Type: multipart/form-data; boundary=b\r\n") + b"--b"
            )
        deadline = time.monotonic() + 20
        name = 'uniwetok_requests_total{path="/v1/images/edits",status="499"}'
        while name not in numbers_of(address):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_bodies_of_many_requests_are_limited_together(pipe):
    with serving(pipe, ServerSettings(max_bytes_inside=1000)) as (address, _):
        long, short = ({"prompt": letter * count} for letter, count in (("a", 2000), (" ", 10)))
        assert httpx2.post(f"{address}/v1/images/generations", json=long).status_code == 429
        assert httpx2.post(f"{address}/v1/images/generations", json=short).status_code == 400


def test_a_form_in_another_charset_is_not_decoded(pipe):
    """Some take minutes for a megabyte."""
    headers = {"Content-Type": "multipart/form-data; boundary=b; charset=punycode"}
    with serving(pipe) as (address, _):
        answer = httpx2.post(f"{address}/v1/images/edits", content=b"--b--", headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "charset"


def test_keys_where_the_app_is_mounted(pipe):
    """Ray Serve and proxies put a prefix before the path."""
    from uniwetok_hf.serving.api import create_app
    from uniwetok_hf.serving.engine import LocalEngine

    engine = LocalEngine(pipe, "tiny")
    app = create_app(engine, ServerSettings(api_keys=("secret",)))

    async def ask(**headers) -> int:
        transport = httpx2.ASGITransport(app, root_path="/llm")
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get("/llm/v1/models", headers=headers)).status_code

    try:
        assert asyncio.run(ask()) == 401
        assert asyncio.run(ask(Authorization="Bearer secret")) == 200
    finally:
        engine.close()


def test_health_tells_when_nothing_is_taken(pipe):
    with serving(pipe) as (address, engine):
        assert httpx2.get(f"{address}/health").json()["status"] == "ok"
        engine.stop_admission()
        assert httpx2.get(f"{address}/health").status_code == 503


def test_a_bug_is_counted_as_one(pipe):
    """The answer is written outside of the door."""
    with serving(pipe) as (address, engine):
        engine.info = None
        assert httpx2.get(f"{address}/v1/models").json()["error"]["code"] == "failed"
        assert numbers_of(address)['uniwetok_requests_total{path="/v1/models",status="500"}'] == 1
