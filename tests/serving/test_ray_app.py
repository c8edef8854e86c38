"""The server on a Ray of this machine, asked through HTTP: started by `uniwetok serve`, and by Ray Serve."""

import base64
import io
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from tiny_models import build_tiny_pipeline

import uniwetok_hf
from uniwetok_hf.data.ray_connection import connected


pytest.importorskip("ray.serve", reason="needs the extra `ray`")
openai = pytest.importorskip("openai", reason="needs the extra `dev`")
from launched import free_port  # noqa: E402

from uniwetok_hf.cli.loading import load_pipeline  # noqa: E402
from uniwetok_hf.cli.ray_app import RayAppArgs, build_ray_app  # noqa: E402


pytestmark = pytest.mark.slow

SOURCE = str(Path(uniwetok_hf.__file__).parents[1])
ARGUMENTS = {"prompt": "a heart", "size": "64x64", "response_format": "b64_json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wanted(folder):
    pipe = load_pipeline(str(folder), "cpu")
    return [pipe("a heart", generator=torch.Generator().manual_seed(seed)).images[0].tobytes() for seed in range(3)]


def pictures(address, key="none"):
    """The pixels of those of three seeds."""
    with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client:
        data = client.images.generate(model="tiny", n=3, extra_body={"seed": 0}, **ARGUMENTS).data
    return [Image.open(io.BytesIO(base64.b64decode(item.b64_json))).tobytes() for item in data]


def test_the_command(folder, wanted):
    """It starts Ray, and leaves nothing behind when SIGTERM ends it."""
    command = [sys.executable, "-m", "uniwetok_hf", "serve", folder.name, "--port", "0"]
    command += ["--engine", "ray", "--num-replicas", "1"]
    environment = os.environ | {"PYTHONPATH": SOURCE}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder.parent, env=environment) as server:
        try:
            line = server.stdout.readline()
            address = re.fullmatch(r"tiny at (http://127\.0\.0\.1:\d+)/v1 \(Ctrl-C stops\)\n", line).group(1)
            children = psutil.Process(server.pid).children(recursive=True)
            assert any("ServeReplica" in " ".join(child.cmdline()) for child in children)
            assert not any("ProxyActor" in " ".join(child.cmdline()) for child in children)
            for _ in range(2):  # the batch of the first answer is told with the second
                assert pictures(address) == wanted
            assert 'uniwetok_batch_size_count{kind="picture"}' in httpx2.get(f"{address}/metrics").text
            server.send_signal(signal.SIGTERM)
            assert server.wait(120) == 0
            _, left = psutil.wait_procs(children, timeout=30)
            assert not left
        finally:
            server.kill()


@pytest.fixture(scope="module")
def address(folder, tmp_path_factory):
    """Where Ray Serve listens, which has two replicas and asks for a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("sesame\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", SOURCE)
        with connected(4):
            from ray import serve

            port = free_port()
            serve.start(http_options={"port": port})
            serve.run(build_ray_app(RayAppArgs(model=str(folder), api_key_file=keys)), name="uniwetok")
            yield f"http://127.0.0.1:{port}"
            serve.shutdown()


def test_the_application(address, wanted):
    assert pictures(address, "sesame") == wanted
    with pytest.raises(openai.AuthenticationError):
        pictures(address)
    with openai.OpenAI(base_url=f"{address}/v1", api_key="sesame", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        with pytest.raises(openai.BadRequestError, match="`size`|`width`|multiple of 32"):
            client.images.generate(model="tiny", **ARGUMENTS | {"size": "65x64"})
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20, "seed": 1}
        chat |= {"temperature": 1.0, "modalities": ["text"]}
        whole = client.chat.completions.create(**chat).choices[0].message.content
        chunks = [
            chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(stream=True, **chat)
        ]
        assert "".join(chunks) == whole and len(chunks) > 3


def test_a_client_that_leaves_ends_its_request(address):
    """Eight pictures, which take much longer than the client waits."""
    from ray import serve

    def running():
        """In front of the replicas, and in them."""
        replicas = serve.get_deployment_handle("Replica", "uniwetok").broadcast("counts").results()
        return httpx2.get(f"{address}/health").json()["running"], sum(map(sum, replicas))

    def ask_and_leave():
        slow = ARGUMENTS | {"n": 8, "size": "512x512", "extra_body": {"num_inference_steps": 100}}
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="sesame", max_retries=0, timeout=10)
        with client, pytest.raises(openai.APITimeoutError):
            client.images.generate(model="tiny", **slow)

    with ThreadPoolExecutor() as threads:
        leaving = threads.submit(ask_and_leave)
        while running() != (8, 8):
            assert not leaving.done()
        leaving.result()
    end = time.monotonic() + 10
    while running() != (0, 0) and time.monotonic() < end:
        time.sleep(0.1)
    assert running() == (0, 0)


def test_options_that_can_not_be():
    with pytest.raises(ValidationError, match="num_replica\n"):
        RayAppArgs(num_replica=3)
    assert RayAppArgs(num_replicas="3", num_gpus="0.5").num_gpus == 0.5  # `serve run` gives texts
    with pytest.raises(ValueError, match="`num_replicas` must be at least 1"):
        build_ray_app(RayAppArgs(num_replicas=0))
