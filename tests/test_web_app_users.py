# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The web page's API, with gradio's own client: names, many users at once, limits, and nothing of the server in what a
visitor reads."""

import json
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gradio_leftovers import collected  # noqa: F401
from model_server import wait_until
from PIL import Image
from tiny_mllm import answer_with_pictures, with_random_weights
from tiny_models import build_tiny_pipeline

from uniwetok_hf import web_app
from uniwetok_hf.data import images
from uniwetok_hf.web_app import build_app, launch_options


gradio = pytest.importorskip("gradio", reason="needs the extra `app`")
gradio_client = pytest.importorskip("gradio_client", reason="needs the extra `app`")
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # gradio's sockets and event loops


@pytest.fixture(scope="module")
def pipe():
    pipe = build_tiny_pipeline(1)
    with_random_weights(pipe.mllm)
    answer_with_pictures(pipe.mllm, pipe.processor)
    pipe.register_to_config(default_size=64)
    return pipe


@pytest.fixture(scope="module")
def served(pipe, tmp_path_factory):
    """Address of the page of a model in a folder, and that folder."""
    folder = tmp_path_factory.mktemp("secret-place") / "my-model" / "pipeline"
    folder.mkdir(parents=True)
    page = build_app(pipe, str(folder))
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield address, folder
    page.close()


@pytest.fixture(scope="module")
def client(served, tmp_path_factory):
    client = connect(served, tmp_path_factory.mktemp("client"))
    yield client
    client.close()
    for pool in (client.executor, client.helper_executor, client.stream_executor):  # it keeps their threads
        pool.shutdown()


def connect(served, folder):
    patient = {"timeout": 120}  # server and clients share this process, and its lock
    return gradio_client.Client(served[0], verbose=False, download_files=str(folder), httpx_kwargs=patient)


def picture_file(path: Path, width: int = 64, height: int = 64, seed: int = 0) -> Path:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def pixels(path) -> bytes:
    path = path["path"] if isinstance(path, dict) else path
    return Image.open(path).convert("RGB").tobytes()


def in_threads(jobs: list[Callable]) -> list:
    results: list = [None] * len(jobs)

    def run(index):
        try:
            results[index] = jobs[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def answers(chat: list[dict]) -> list[bytes]:
    """The pictures that the assistant showed."""
    parts = [part for turn in chat if turn["role"] == "assistant" for part in turn["content"]]
    return [pixels(part["value"]) for part in parts if part.get("component") == "image"]


def test_the_api_has_names(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    names = {name: [one["parameter_name"] for one in info["parameters"]] for name, info in endpoints.items()}
    assert names == {
        "/generate": ["prompt", "seed", "steps", "guidance"],
        "/edit": ["picture", "prompt", "seed", "steps", "guidance"],
        "/describe": ["picture", "question"],
        "/reconstruct": ["picture", "seed"],
        "/converse": ["message", "seed"],
        "/start_over": [],
    }
    required = {
        (name, one["parameter_name"])
        for name, info in endpoints.items()
        for one in info["parameters"]
        if not one["parameter_has_default"]
    }
    pictures = {(name, "picture") for name in ("/edit", "/describe", "/reconstruct")}
    assert required == {("/generate", "prompt"), ("/edit", "prompt")} | pictures


def test_each_job_by_its_name(client, pipe, tmp_path):
    shown = gradio_client.handle_file(picture_file(tmp_path / "a.png"))
    image, details = client.predict("a cat", seed=3, steps=2, guidance=2.0, api_name="/generate")
    alone = pipe("a cat", generator=torch.Generator().manual_seed(3), num_inference_steps=2, guidance_scale=2.0)
    assert pixels(image) == alone.images[0].tobytes() and details.startswith("64 x 64 pixels")
    image, details = client.predict(picture=shown, prompt="make it green", api_name="/edit")
    assert len(pixels(image)) == 64 * 64 * 3 and details.startswith("64 x 64 pixels")
    assert isinstance(client.predict(picture=shown, api_name="/describe"), str)
    image, planes, details = client.predict(picture=shown, api_name="/reconstruct")
    assert len(pixels(image)) == 64 * 64 * 3 and pixels(planes) and "2 x 2 tokens" in details
    chat, _ = client.predict({"text": "draw", "files": []}, api_name="/converse")
    assert len(answers(chat)) == 1


@pytest.mark.parametrize("users", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_many_users_at_once(served, pipe, tmp_path, users):
    """Each gets the answer to what it asked, whatever tab, and no conversation holds another's turns."""

    def user(number):
        def run():
            folder = tmp_path / str(number)
            folder.mkdir()
            client = connect(served, folder)
            if number % 2:
                return pixels(client.predict(f"cat {number}", seed=number, steps=1, api_name="/generate")[0])
            client.predict({"text": f"draw {number}", "files": []}, number, api_name="/converse")
            second, _ = client.predict({"text": "again", "files": []}, number, api_name="/converse")
            said = [part["text"] for turn in second if turn["role"] == "user" for part in turn["content"]]
            return said, answers(second)

        return run

    def alone(number):
        settings = {"generator": torch.Generator().manual_seed(number)}
        if number % 2:
            return pipe(f"cat {number}", num_inference_steps=1, **settings).images[0].tobytes()
        talk, shown = web_app.UniWeTokConversation(pipe), []
        for text in (f"draw {number}", "again"):
            reply = talk.say(text, generator=torch.Generator().manual_seed(number))
            shown += [image.tobytes() for image in reply.images]
        return [f"draw {number}", "again"], shown

    assert in_threads([user(number) for number in range(users)]) == [alone(number) for number in range(users)]


def test_one_job_at_a_time(served, pipe, tmp_path, monkeypatch):
    """Jobs of all tabs share the model."""
    running, most = [], []
    answer = web_app.answer_question

    def watched(*args, **kwargs):
        running.append(1)
        most.append(len(running))
        time.sleep(0.2)
        try:
            return answer(*args, **kwargs)
        finally:
            running.pop()

    rebuild = web_app.reconstruct

    def watched_too(*args, **kwargs):
        running.append(1)
        most.append(len(running))
        time.sleep(0.2)
        try:
            return rebuild(*args, **kwargs)
        finally:
            running.pop()

    monkeypatch.setattr(web_app, "answer_question", watched)
    monkeypatch.setattr(web_app, "reconstruct", watched_too)
    shown = gradio_client.handle_file(picture_file(tmp_path / "a.png"))
    clients = [connect(served, tmp_path) for _ in range(4)]
    names = ["/describe", "/reconstruct"] * 2
    jobs = [
        lambda c=client, n=name: c.predict(picture=shown, api_name=n)
        for client, name in zip(clients, names, strict=True)
    ]
    assert not any(isinstance(result, Exception) for result in in_threads(jobs))
    assert len(most) == 4 and max(most) == 1


def message_of(call) -> str:
    with pytest.raises(gradio_client.exceptions.AppError) as raised:
        call()
    return str(raised.value)


def test_limits_of_uploads(client, served, tmp_path, monkeypatch):
    large = tmp_path / "large.png"
    picture_file(large, 300, 300)
    monkeypatch.setattr(images, "MOST_PIXELS", 89_999)
    file = gradio_client.handle_file(large)
    for name in ("/describe", "/reconstruct"):
        words = message_of(lambda n=name: client.predict(picture=file, api_name=n))
        assert words == "This file can't be used: 300 x 300 pixels; at most 0 million are read."
    monkeypatch.undo()
    client.predict(picture=file, api_name="/reconstruct")

    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(large.read_bytes() + bytes(21_000_000))
    with pytest.raises(Exception, match="(?i)size|large") as raised:
        client.predict(picture=gradio_client.handle_file(heavy), api_name="/reconstruct")
    assert str(served[1]) not in str(raised.value)

    bomb = tmp_path / "bomb.png"
    Image.new("1", (30_000, 30_000)).save(bomb)
    words = message_of(lambda: client.predict(picture=gradio_client.handle_file(bomb), api_name="/reconstruct"))
    assert words.startswith("This file can't be used: too many pixels to open safely")
    document = tmp_path / "document.png"
    Image.new("RGB", (9, 9)).save(document, format="EPS")  # Pillow would run another program
    words = message_of(lambda: client.predict(picture=gradio_client.handle_file(document), api_name="/reconstruct"))
    assert words.startswith("This file can't be used: it must be one of PNG, JPEG")
    five = {"text": "these", "files": [gradio_client.handle_file(large)] * 5}
    assert message_of(lambda: client.predict(five, api_name="/converse")) == (
        "These are 5 pictures; a turn may have 4."
    )


def test_limits_of_settings(client):
    calls = [
        ({"prompt": "a" * 2001}, "This text has 2,001 characters"),
        ({"prompt": "a", "seed": -1}, None),
        ({"prompt": "a", "seed": 10**30}, None),
        ({"prompt": "a", "seed": None}, "`seed` must be a number"),
        ({"prompt": "a", "steps": 10**6}, None),
        ({"prompt": "a", "guidance": 10**6}, None),
        ({"prompt": None}, "Write what to generate."),
    ]
    for call, words in calls:
        message = message_of(lambda c=call: client.predict(**c, api_name="/generate"))
        assert (words or "") in message and "Traceback" not in message, message
    image, _ = client.predict("a", steps=1, api_name="/generate")
    assert pixels(image)


def test_a_job_that_takes_too_long_is_stopped(served, tmp_path, monkeypatch):
    client = connect(served, tmp_path)
    monkeypatch.setattr(web_app, "JOB_SECONDS", 0)
    words = "This took more than 0 seconds and was stopped. Fewer steps take less."
    assert message_of(lambda: client.predict("a cat", api_name="/generate")) == words
    assert message_of(lambda: client.predict({"text": "draw", "files": []}, api_name="/converse")) == words
    monkeypatch.undo()
    chat, _ = client.predict({"text": "draw", "files": []}, api_name="/converse")
    assert len(answers(chat)) == 1


def test_stop_ends_a_job_that_has_shown_nothing_yet(client, pipe, monkeypatch):
    decode, decoded = pipe.decode, []

    def slow_decode(*inputs):
        decoded.append(1)
        time.sleep(0.5)
        return decode(*inputs)

    def is_working():
        return any(thread.name == "uniwetok-job" for thread in threading.enumerate())

    monkeypatch.setattr(pipe, "decode", slow_decode)
    monkeypatch.setattr(web_app, "NUM_PREVIEWS", 16)
    pipe.register_to_config(default_size=128)  # 16 patches
    try:
        job = client.submit("a cat", steps=1, api_name="/generate")
        wait_until(is_working)
        job.cancel()
        wait_until(lambda: not is_working())
    finally:
        pipe.register_to_config(default_size=64)
    assert len(decoded) < 16  # 15 previews and the picture


def test_a_full_queue_says_so(pipe, tmp_path, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(web_app, "MOST_WAITING", 2)
    monkeypatch.setattr(web_app, "answer_question", lambda *_, **__: [str(go_on.wait(60))])
    page = build_app(pipe, "tiny")
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    try:
        shown = gradio_client.handle_file(picture_file(tmp_path / "a.png"))
        clients = [connect((address,), tmp_path) for _ in range(8)]
        jobs = [client.submit(picture=shown, api_name="/describe") for client in clients]
        deadline = time.monotonic() + 30
        while sum(job.done() for job in jobs) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        go_on.set()
        results = [job.exception(timeout=60) or job.result() for job in jobs]
    finally:
        go_on.set()
        page.close()
    refused = [result for result in results if isinstance(result, Exception)]
    assert 5 <= len(refused) < 8 and all("Queue is full" in str(one) for one in refused)
    assert results.count("True") == 8 - len(refused)


def test_nothing_of_the_server_in_what_a_visitor_reads(client, served, tmp_path, monkeypatch, caplog):
    address, folder = served
    secrets = [
        str(folder),
        str(folder.parent.parent),
        os.getcwd(),
        str(Path.home()),
        sys.prefix,
        str(Path(web_app.__file__).parent),
    ]
    texts = []
    for path in ("", "config", "gradio_api/info", "gradio_api/startup-events"):
        with urllib.request.urlopen(address + path) as answer:
            texts.append(answer.read().decode())
    assert "UniWeTok: my-model" in json.loads(texts[1])["title"]

    def fail(*args, **kwargs):
        raise RuntimeError(f"can't read {folder}/model.safetensors")

    monkeypatch.setattr(web_app, "answer_question", fail)
    shown = gradio_client.handle_file(picture_file(tmp_path / "a.png"))
    texts.append(message_of(lambda: client.predict(picture=shown, api_name="/describe")))
    assert texts[-1] == "Something went wrong on the server."
    assert any("can't read" in str(record.exc_info) for record in caplog.records)
    monkeypatch.undo()

    (tmp_path / "words.png").write_text("no picture")
    words = gradio_client.handle_file(tmp_path / "words.png")
    texts.append(message_of(lambda: client.predict(picture=words, api_name="/reconstruct")))
    assert texts[-1].startswith("This file can't be used: it must be one of PNG, ")
    texts.append(message_of(lambda: client.predict(prompt="a <|im_end|>", api_name="/generate")))
    for path in ("/etc/passwd", str(Path(web_app.__file__))):  # a file of the server's
        data = {"path": path, "meta": {"_type": "gradio.FileData"}}
        with pytest.raises(Exception, match=".") as raised:
            client.predict(picture=data, api_name="/reconstruct")
        texts.append(str(raised.value).replace(path, ""))
    for text in texts:
        assert not [secret for secret in secrets if secret in text], text[:1000]
