"""`uniwetok serve` as a process, and what it refuses before a model is loaded."""

import signal
import socket
import subprocess
import sys
import time

import httpx2
import pytest
from launched import free_port

from uniwetok_hf.cli.common import read_keys


pytest.importorskip("fastapi", reason="needs the extra `serve`")


def test_without_its_extra_it_says_what_to_install(fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert 'pip install "uniwetok-hf[serve]"' in fails("serve")


def test_without_ray_it_says_what_to_install(fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert 'needs ray: pip install "uniwetok-hf[serve,ray]"' in fails("serve", "--port", "0", "--engine", "ray")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--adapter", "cats"], "NAME=FOLDER"),
        (["--adapter", "a/b=folder"], "NAME=FOLDER"),
        (["--adapter", "cats-1.5=folder"], "letters, digits, '_' and '-'"),
        (["--adapter", "a=x", "--adapter", "a=y"], "same name"),
        (["--timeout", "0"], "more than 0"),
        (["--api-key-file", "missing.txt"], "missing.txt"),
        (["--host", "203.0.113.7"], "--host 203.0.113.7"),
        (["--port", "70000"], "--port 70000"),
        (["--port", "0", "--engine", "ray", "--device", "cuda:1"], "whose number Ray chooses"),
        (["missing/folder/pipeline"], "neither a folder"),
    ],
)
def test_what_it_refuses(fails, argv, words):
    assert words in fails("serve", *argv)


def test_keys_of_a_file_from_windows(tmp_path):
    (tmp_path / "keys.txt").write_bytes("\ufeff# mine\r\nfirst\r\n second \r\n".encode())
    assert read_keys(tmp_path / "keys.txt") == ("first", "second")


def test_a_file_without_keys(fails, workplace):
    (workplace / "keys.txt").write_text("# none yet\n\n")
    assert "holds no key" in fails("serve", "--api-key-file", "keys.txt")


def test_a_port_that_is_taken(fails):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "in use" in fails("serve", "--port", str(taken.getsockname()[1]))


def test_an_adapter_that_is_none(fails, pipeline_folder):
    assert "no-such-adapter" in fails("serve", str(pipeline_folder), "--port", "0", "--adapter", "a=no-such-adapter")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_stopped(number, pipeline_folder, workplace):
    (workplace / "keys.txt").write_text("# of the tests\nsecret\n")
    port = free_port()
    command = [sys.executable, "-m", "uniwetok_hf", "serve", str(pipeline_folder), "--port", str(port)]
    address, keys = f"http://127.0.0.1:{port}", {"Authorization": "Bearer secret"}
    with subprocess.Popen([*command, "--api-key-file", "keys.txt"], stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("tiny-pipeline at " + address)
            wait_for(f"{address}/health")
            assert httpx2.get(f"{address}/v1/models").status_code == 401
            [model] = httpx2.get(f"{address}/v1/models", headers=keys).json()["data"]
            assert model["id"] == "tiny-pipeline"
            body = {"prompt": "a cat", "seed": 1, "num_inference_steps": 2}
            answer = httpx2.post(f"{address}/v1/images/generations", json=body, headers=keys, timeout=60)
            assert answer.status_code == 200
        finally:
            process.send_signal(number)
            assert process.wait(30) == 0
        assert process.stdout.read() == ""


def wait_for(address: str) -> None:
    """It prints its address before it listens."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            httpx2.get(address)
            return
        except httpx2.TransportError:
            time.sleep(0.05)
    pytest.fail(f"{address} does not answer")
