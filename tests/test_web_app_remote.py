# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The web page whose jobs a server does: a real server, and the page's jobs and its API."""

import json
import socket
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from gradio_leftovers import collected  # noqa: F401
from model_server import model_server, wait_until
from PIL import Image
from tiny_mllm import answer_with_pictures, seeded, with_random_weights
from tiny_models import build_tiny_mllm, build_tiny_pipeline

from uniwetok_hf.adapters import lora_config, save_adapter
from uniwetok_hf.serving import client as client_module
from uniwetok_hf.serving.client import ServerClient
from uniwetok_hf.web_app import Studio, launch_options
from uniwetok_hf.web_app_remote import RemoteStudio, build_remote_app


gradio_client = pytest.importorskip("gradio_client", reason="needs the extra `app`")
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # gradio's sockets and event loops
EDITS = "/v1/images/edits"


def build_pipe():
    """Always the same."""
    pipe = build_tiny_pipeline(1)
    with_random_weights(pipe.mllm)
    return pipe


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """The folder of an adapter."""
    folder, model, generator = tmp_path_factory.mktemp("adapters") / "cats", build_tiny_mllm(), seeded(1)
    model.add_adapter(lora_config("language_model", r=4))
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    save_adapter(model, folder)
    return folder


@pytest.fixture(scope="module")
def server(adapter):
    with model_server(build_pipe(), "tiny", {"cats": str(adapter)}, api_keys=("our-key", "another")) as running:
        yield running


@pytest.fixture
def client(server):
    return ServerClient(server.url, "our-key")


@pytest.fixture
def remote(client):
    return RemoteStudio(client, "tiny", client.models()["tiny"])


@pytest.fixture(scope="module")
def local():
    return Studio(build_pipe())


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def last(results):
    return list(results)[-1]


@contextmanager
def pictures_as_answers(*models):
    """Within the block the models answer with pictures, else with text."""
    for pipe in models:
        answer_with_pictures(pipe.mllm, pipe.processor)
    try:
        yield
    finally:
        for pipe in models:
            pipe.mllm.generation_config.sequence_bias = None


def test_the_model_and_its_adapters_with_their_defaults(client):
    models = client.models()
    assert list(models) == ["tiny", "cats"]
    assert models["cats"]["default_num_inference_steps"] == 2 and models["tiny"]["default_guidance_scale"] == 2.0


def test_generation_gives_the_picture_of_the_seed(remote, local):
    image, details = last(remote.generate("red apple", 3, 3, 2.5))
    same, _ = last(local.generate("red apple", 3, 3, 2.5))
    other, _ = last(local.generate("red apple", 4, 3, 2.5))
    assert image.tobytes() == same.tobytes() != other.tobytes()
    assert details.startswith("64 x 64 pixels in ")


def test_editing_gives_the_picture_of_the_seed_without_padding(remote, local):
    image, details = last(remote.edit(picture(60, 90), "make it green", 1, 2, 2.0))
    same, _ = last(local.edit(picture(60, 90), "make it green", 1, 2, 2.0))
    assert image.tobytes() == same.tobytes() and image.size == (60, 90)
    assert details.startswith("60 x 90 pixels in ")


def test_editing_shows_the_description():
    pipe = build_pipe()
    pipe.register_to_config(default_describe_first=True)
    with model_server(pipe) as running:
        client = ServerClient(running.url)
        _, details = last(RemoteStudio(client, "tiny", {}).edit(picture(), "make it green", 1, 1, 2.0))
    local = Studio(build_pipe())
    (description,) = local.edit_pipe.describe_results([picture()], ["make it green"])
    assert description and details.startswith(f"{description}; 64 x 64 pixels")


def test_descriptions_grow(remote, local):
    shown = list(remote.describe(picture(), "what is this?"))
    assert shown[-1] == last(local.describe(picture(), "what is this?"))
    assert len({*shown}) > 2 and all(shown[-1].startswith(text) for text in shown)


def test_text_of_a_conversation_grows_and_stays(remote, local):
    shown = list(remote.converse(None, "what is it?", [picture()], 0))
    talk, text, images, is_whole = shown[-1]
    _, same, *_ = last(local.converse(None, "what is it?", [picture()], 0))
    assert (text, images, is_whole) == (same, [], True)
    assert len({words for _, words, *_ in shown}) > 2
    assert not any(is_whole for *_, is_whole in shown[:-1]) and all(state is None for state, *_ in shown[:-1])
    assert [turn["role"] for turn in talk] == ["user", "assistant"]
    more, *_ = last(remote.converse(talk, "and now?", [], 0))
    assert more[:2] == talk and len(more) == 4 and len(talk) == 2
    assert more[3] != talk[1]


def test_pictures_of_a_conversation(remote, local, server):
    with pictures_as_answers(server.engine.pipe, local.pipe):
        talk, text, images, is_whole = last(remote.converse(None, "draw", [], 5))
        _, _, same, _ = last(local.converse(None, "draw", [], 5))
        assert [image.tobytes() for image in images] == [image.tobytes() for image in same]
        assert (text, len(images), is_whole) == ("", 1, True)
        # The model is shown what it has drawn, in its place.
        (item,) = talk[1]["content"]
        assert client_module.read_png(item["image_url"]["url"]).tobytes() == images[0].tobytes()
        more, _, second, _ = last(remote.converse(talk, "again", [picture(96, 64)], 5))
    assert second[0].size == (96, 64) and len(more) == 4


def test_closing_gives_the_request_up(remote, server):
    dropped = server.count(EDITS, 499)
    edit = remote.edit(picture(256, 256), "make it green", 0, 50, 2.0)  # takes seconds
    image, details = next(edit)
    assert image is None and details.startswith("waiting for the server, ")
    wait_until(lambda: server.engine.num_running == 1)
    edit.close()
    assert not [thread.name for thread in threading.enumerate() if "portal" in thread.name]
    wait_until(lambda: server.count(EDITS, 499) == dropped + 1 and server.engine.num_running == 0)
    talk = remote.converse(None, "what is it?", [], 0)
    while not next(talk)[1]:
        pass
    talk.close()
    wait_until(lambda: server.engine.num_running == 0)
    assert last(remote.generate("red apple", 0, 2, 2.0))[0] is not None


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (lambda studio: studio.generate(" ", 0, 2, 2.0), "Write what to generate"),
        (lambda studio: studio.edit(picture(), "", 0, 2, 2.0), "Write what to change"),
        (lambda studio: studio.describe(picture(), ""), "Write a question"),
        (lambda studio: studio.generate("a", None, 2, 2.0), "`seed` must be a number"),
        (lambda studio: studio.converse(None, "a", [], -1), "`seed` must be a number"),
        (lambda studio: studio.generate("a <|im_end|>", 0, 2, 2.0), "`prompt` .*must not hold the special tokens"),
        (lambda studio: studio.edit(picture(), "a <|im_end|>", 0, 2, 2.0), "must not hold the special tokens"),
        (lambda studio: studio.converse(None, "a <|im_end|>", [], 0), "must not hold the special tokens"),
        (lambda studio: studio.converse(None, "a", [picture()] * 17, 0), "more than 16 pictures"),
        (lambda studio: studio.describe(picture(640, 64), "what?"), "`width` must be a multiple of 32"),
    ],
)
def test_bad_input_gets_a_sentence(remote, job, words):
    with pytest.raises(ValueError, match=words):
        list(job(remote))


def jobs(studio):
    """One for each address and way of answering."""
    return [
        lambda: list(studio.generate("a", 0, 1, 2.0)),
        lambda: list(studio.edit(picture(), "a", 0, 1, 2.0)),
        lambda: list(studio.converse(None, "a", [], 0)),
    ]


def test_what_the_visitor_can_not_mend_gets_a_sentence_too(remote, server, monkeypatch):
    def fails(studio, words):
        for job in jobs(studio):
            with pytest.raises(ValueError, match=words):
                job()

    fails(RemoteStudio(ServerClient(server.url, "wrong"), "tiny", {}), "does not accept this page's key")
    fails(RemoteStudio(remote.client, "dogs", {}), "`model` must be one of tiny, cats, got 'dogs'")
    monkeypatch.setattr(server.engine, "max_waiting", 0)
    fails(remote, "Too many requests wait for the model. Try again in a moment.")
    monkeypatch.undo()
    with model_server(build_pipe(), timeout=0.001) as slow:
        fails(RemoteStudio(ServerClient(slow.url), "tiny", {}), "took too long and gave up. Fewer steps take less.")
    with model_server(build_pipe(), max_body_bytes=60) as small:
        fails(RemoteStudio(ServerClient(small.url), "tiny", {}), "more than the server of the model reads at once")
    with model_server(build_pipe()) as stopping:
        studio = RemoteStudio(ServerClient(stopping.url), "tiny", {})
        stopping.engine.stop_admission()
        fails(studio, "is stopping, or not ready. Try again later.")
    fails(studio, "can't be reached. Try again later.")


@contextmanager
def canned(answer: bytes):
    """The address of a server that answers everything with these bytes, and hangs up."""

    def serve():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(0.2)
                try:
                    while connection.recv(65536):
                        pass
                except TimeoutError:
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def http(status: str, body: str, kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n{body}".encode()


def event(content: dict) -> str:
    return f"data: {json.dumps(content)}\n\n"


def stream(content: str) -> bytes:
    return http("200 OK", content, "text/event-stream")


def failure(code: str) -> str:
    return event({"error": {"message": "There is not enough memory.", "code": code}})


BEGUN = event({"choices": [{"delta": {"content": "red"}}]})


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "went away before the answer was finished"),
        (stream(BEGUN), "went away before the answer was finished"),
        (stream(BEGUN + failure("timeout")), "took too long and gave up"),
        (stream(BEGUN + failure("stopping")), "is stopping"),
        (stream(BEGUN + failure("failed")), "There is not enough memory."),
        (stream("data: {\n\n"), "can't read"),
        (http("502 Bad Gateway", "<html>"), "can't be reached"),
        (http("418 Teapot", "[]"), "answers with the status 418"),
    ],
    ids=["hangs up", "half", "late", "stopping", "failed", "no JSON", "proxy", "unknown"],
)
def test_answers_of_servers_in_trouble(answer, words):
    with canned(answer) as url:
        studio = RemoteStudio(ServerClient(url), "tiny", {})
        with pytest.raises(ValueError, match=words):
            list(studio.converse(None, "a", [], 0))


def test_a_page_of_another_server(server):
    for answer, words in (
        (http("200 OK", json.dumps({"data": [{"id": "gpt"}]})), "is no server of `uniwetok serve` .status 200"),
        (http("200 OK", "hello", "text/plain"), "is no server of `uniwetok serve`"),
        (http("404 Not Found", "{}"), "is no server of `uniwetok serve` .status 404"),
        (b"SSH-2.0-OpenSSH\r\n", "no answer"),
    ):
        with canned(answer) as url, pytest.raises(ValueError, match=words):
            build_remote_app(ServerClient(url))
    with pytest.raises(ValueError, match="no answer .*refused"):
        ServerClient(url).models()
    with pytest.raises(ValueError, match="wants an API key"):
        ServerClient(server.url).models()
    with pytest.raises(ValueError, match="wants another API key"):
        ServerClient(server.url, "wrong").models()
    for url in ("localhost:8000", "ftp://localhost", "http://", "http://host:port", ""):
        with pytest.raises(ValueError, match="`url` must be http://HOST:PORT"):
            ServerClient(url)
    for url in (f"{server.url}/", f"{server.url}/v1", f"{server.url}/v1/"):
        assert list(ServerClient(url, "another").models()) == ["tiny", "cats"]


@pytest.fixture(scope="module")
def page(server):
    """Its address."""
    page = build_remote_app(ServerClient(server.url, "our-key"))
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield address
    page.close()


@pytest.fixture
def connect(page, tmp_path):
    """Makes clients of the page."""
    made = []

    def new():
        made.append(
            gradio_client.Client(page, verbose=False, download_files=str(tmp_path), httpx_kwargs={"timeout": 120})
        )
        return made[-1]

    yield new
    for client in made:
        client.close()
        for pool in (client.executor, client.helper_executor, client.stream_executor):  # it keeps their threads
            pool.shutdown()


def pixels(path) -> bytes:
    path = path["path"] if isinstance(path, dict) else path
    return Image.open(path).convert("RGB").tobytes()


def test_the_page_has_what_a_server_can_do(connect, page):
    endpoints = connect().view_api(return_format="dict")["named_endpoints"]
    names = {name: [one["parameter_name"] for one in info["parameters"]] for name, info in endpoints.items()}
    assert names == {
        "/generate": ["prompt", "seed", "steps", "guidance", "model"],
        "/edit": ["picture", "prompt", "seed", "steps", "guidance", "model"],
        "/describe": ["picture", "question", "model"],
        "/converse": ["message", "seed", "model"],
        "/start_over": [],
    }


def test_each_job_of_the_page(connect, local, server, tmp_path):
    client = connect()
    picture().save(tmp_path / "a.png")
    shown = gradio_client.handle_file(tmp_path / "a.png")
    image, details = client.predict("a cat", seed=3, api_name="/generate")
    assert pixels(image) == last(local.generate("a cat", 3, 2, 2.0))[0].tobytes()
    assert details.startswith("64 x 64 pixels in ")
    with_adapter, _ = client.predict("a cat", seed=3, model="cats", api_name="/generate")
    assert pixels(with_adapter) != pixels(image)
    image, _ = client.predict(picture=shown, prompt="make it green", api_name="/edit")
    assert pixels(image) == last(local.edit(picture(), "make it green", 0, 2, 2.0))[0].tobytes()
    answer = client.predict(picture=shown, question="what?", api_name="/describe")
    assert answer == last(local.describe(picture(), "what?"))
    with pictures_as_answers(server.engine.pipe):
        client.predict({"text": "draw", "files": [shown]}, 1, api_name="/converse")
        chat, _ = client.predict({"text": "again", "files": []}, 1, "cats", api_name="/converse")
    parts = [(turn["role"], part.get("component") or part.get("text")) for turn in chat for part in turn["content"]]
    assert parts == [
        ("user", "image"),
        ("user", "draw"),
        ("assistant", "image"),
        ("user", "again"),
        ("assistant", "image"),
    ]
    with pytest.raises(gradio_client.exceptions.AppError, match="must not hold the special tokens"):
        client.predict("a <|im_end|>", api_name="/generate")


def test_jobs_of_several_visitors_run_together(connect, local, server):
    sizes = []
    server.engine.on_batch = lambda report: sizes.append(report.size)
    clients = [connect() for _ in range(4)]
    answers = [
        client.submit("a cat", seed=seed, steps=20, api_name="/generate") for seed, client in enumerate(clients)
    ]
    found = [pixels(answer.result(timeout=120)[0]) for answer in answers]
    assert found == [last(local.generate("a cat", seed, 20, 2.0))[0].tobytes() for seed in range(4)]
    assert sum(sizes) == 4 and max(sizes) > 1


def test_stop_reaches_the_server(connect, server, tmp_path):
    picture(256, 256).save(tmp_path / "a.png")
    dropped = server.count(EDITS, 499)
    shown = gradio_client.handle_file(tmp_path / "a.png")
    job = connect().submit(picture=shown, prompt="make it green", steps=50, api_name="/edit")  # takes seconds
    wait_until(lambda: server.engine.num_running == 1)
    job.cancel()
    wait_until(lambda: server.count(EDITS, 499) == dropped + 1 and server.engine.num_running == 0)
