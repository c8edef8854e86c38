"""`uniwetok app`; what the page does is in tests/test_web_app*.py."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from chat_server import chat_server
from model_server import model_server, wait_until
from tiny_models import build_tiny_pipeline

import uniwetok_hf


def test_without_gradio_it_says_what_to_install(fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert 'pip install "uniwetok-hf[app]"' in fails("app")


def test_a_server_has_a_model_and_a_device_of_its_own(fails, tmp_path):
    url = "http://127.0.0.1:1"
    for options in (["--model", "tiny"], ["--device", "cuda"], ["--model", "tiny", "--device", "cpu"]):
        assert fails("app", "--server", url, *options).endswith("leave out --model and --device")
    assert fails("app", "--api-key-file", tmp_path / "key").endswith("give --server, too")


def test_a_server_that_can_not_be_used_ends_the_command(fails, tmp_path):
    pytest.importorskip("gradio", reason="needs the extra `app`")
    assert fails("app", "--server", "127.0.0.1:8000").startswith("--server 127.0.0.1:8000: `url` must be http://HOST")
    with chat_server(lambda words: words) as (url, _):
        assert fails("app", "--server", url) == f"--server {url}: this is no server of `uniwetok serve` (status 200)"
    assert fails("app", "--server", url).startswith(f"--server {url}: no answer (")
    key = tmp_path / "key"
    assert fails("app", "--server", url, "--api-key-file", key).startswith(f"--api-key-file {key}: ")
    with model_server(build_tiny_pipeline(), api_keys=("ours",)) as running:
        call = "app", "--server", running.url
        assert fails(*call) == f"--server {running.url}: the server wants an API key"
        key.write_text("# of another\ntheirs\nours\n")
        assert fails(*call, "--api-key-file", key) == f"--server {running.url}: the server wants another API key"


@pytest.mark.slow
def test_the_page_of_a_server(tmp_path):
    pytest.importorskip("gradio", reason="needs the extra `app`")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "key").write_text("ours\n")
    with model_server(build_tiny_pipeline(), "emoji-model", api_keys=("ours",)) as running:
        command = [sys.executable, "-m", "uniwetok_hf", "app", "--server", f"{running.url}/v1", "--port", str(port)]
        environment = os.environ | {"PYTHONPATH": str(Path(uniwetok_hf.__file__).parent.parent)}
        page = subprocess.Popen([*command, "--api-key-file", tmp_path / "key"], env=environment)
        try:
            wait_until(lambda: page.poll() is not None or answers(port), 300)
            config = answers(port)
        finally:
            page.send_signal(signal.SIGINT)
            code = page.wait(60)
    assert config["title"] == "UniWeTok: emoji-model"
    assert "Reconstruct" not in json.dumps(config)
    assert code in (0, 130)  # 130: interrupted while it still started


def answers(port: int) -> dict | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=30) as answer:
            return json.load(answer)
    except OSError:
        return None
