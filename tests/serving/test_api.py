# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The server's addresses, asked by OpenAI's own client: answers of the pipelines, errors, keys, and clients that
leave."""

import base64
import io
import json
import re
import threading
import time

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_mllm import answer_with_pictures, with_random_weights
from tiny_models import build_tiny_pipeline

from uniwetok_hf import UniWeTokConversation, UniWeTokEditPipeline


openai = pytest.importorskip("openai", reason="needs the extra `dev`")
pytest.importorskip("fastapi", reason="needs the extra `serve`")

from running_server import serving  # noqa: E402

from uniwetok_hf.serving.service import ServerSettings  # noqa: E402


SIDE = 64
SLOW = 3000  # diffusion steps of a request that is to be caught in the middle: at most 100 are served, so by default


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build_pipe(**defaults):
    pipe = build_tiny_pipeline(1, **{"default_size": SIDE, "default_num_inference_steps": 3} | defaults)
    with_random_weights(pipe.mllm)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    pipe = build_pipe()
    answer_with_pictures(pipe.mllm, pipe.processor)
    return pipe


@pytest.fixture(scope="module")
def address(pipe):
    with serving(pipe) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def picture():
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def as_address(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(as_png(image)).decode()}"


def opened(encoded: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(encoded.split(",")[-1]))).convert("RGB")  # of the plain class


def turn(text: str, *images: Image.Image) -> dict:
    shown = [{"type": "image_url", "image_url": {"url": as_address(image)}} for image in images]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}


def test_models_tells_the_defaults(client):
    [model] = client.models.list()
    assert model.id == "tiny"
    assert model.defaults["default_num_inference_steps"] == 3
    assert client.models.retrieve("tiny").id == "tiny"


def test_generations_are_those_of_the_pipeline(client, pipe):
    extra = {"seed": 5, "num_inference_steps": 2, "guidance_scale": 2.0, "negative_prompt": "blue"}
    answer = client.images.generate(model="tiny", prompt="a red apple", n=3, size="96x64", extra_body=extra)
    assert [one.seed for one in answer.data] == [5, 6, 7]
    for one in answer.data:
        expected = pipe(
            "a red apple",
            height=64,
            width=96,
            num_inference_steps=2,
            guidance_scale=2.0,
            negative_prompt="blue",
            generator=seeded(one.seed),
        )
        assert opened(one.b64_json) == expected.images[0]
    assert answer.size == "96x64"
    assert answer.usage.output_tokens == 3 * 6


def test_without_a_seed_one_is_drawn_and_told(client, pipe):
    first, second = (client.images.generate(model="tiny", prompt="cat").data[0] for _ in range(2))
    assert first.seed != second.seed
    assert opened(first.b64_json) == pipe("cat", generator=seeded(first.seed)).images[0]


def test_edits_are_those_of_the_pipeline(client, pipe, picture):
    extra = {"seed": 4, "guidance_scale": 3, "image_guidance_scale": 1.5, "negative_prompt": "as it is"}
    answer = client.images.edit(
        model="tiny", image=("one.png", as_png(picture)), prompt="make it green", n=2, extra_body=extra
    )
    edit = UniWeTokEditPipeline.from_pipe(pipe)
    for seed, one in zip((4, 5), answer.data, strict=True):
        expected = edit(
            picture,
            "make it green",
            guidance_scale=3.0,
            image_guidance_scale=1.5,
            negative_prompt="as it is",
            generator=seeded(seed),
        )
        assert opened(one.b64_json) == expected.images[0]


def test_a_chat_answers_with_the_picture_of_a_conversation(client, pipe, picture):
    expected = UniWeTokConversation(pipe).say("green, please", [picture], generator=seeded(3))
    answer = client.chat.completions.create(
        model="tiny", messages=[turn("green, please", picture)], seed=3, extra_body={"size": "auto"}
    )
    message = answer.choices[0].message
    assert opened(message.images[0]["image_url"]["url"]) == expected.images[0]
    assert message.content is None and answer.choices[0].finish_reason == "stop"
    # The answer goes on as it came, as OpenAI's clients send it back.
    history = [turn("green, please", picture), message.model_dump(exclude_none=True), turn("now red")]
    again = client.chat.completions.create(model="tiny", messages=history, seed=3)
    assert len(again.choices[0].message.images) == 1


def test_a_stream_has_the_text_in_pieces_and_the_picture_as_one(picture):
    pipe = build_pipe()
    with serving(pipe) as (address, _), openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        expected = UniWeTokConversation(pipe).say("what is it?", [picture], max_new_tokens=12)
        body = {"model": "tiny", "messages": [turn("what is it?", picture)], "max_completion_tokens": 12}
        whole = client.chat.completions.create(**body, modalities=["text"])
        chunks = [*client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True})]
        drawn = [*client.chat.completions.create(**body, seed=2, stream=True, modalities=["image"])]
    texts = [one.choices[0].delta.content for one in chunks if one.choices and one.choices[0].delta.content]
    assert len(texts) > 1
    assert " ".join("".join(texts).split()) == expected.text
    assert whole.choices[0].message.content == "".join(texts)
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    pictures = [one.choices[0].delta.images for one in drawn if hasattr(one.choices[0].delta, "images")]
    [[item]] = pictures
    assert opened(item["image_url"]["url"]).size == (SIDE, SIDE)
    assert drawn[-1].choices[0].finish_reason == "stop"


WRONG = {
    "empty prompt": ({"prompt": " "}, "prompt"),
    "special tokens": ({"prompt": "a <|im_end|>"}, "prompt"),
    "a size of no tokens": ({"prompt": "a", "size": "65x64"}, "width"),
    "a size that is none": ({"prompt": "a", "size": "large"}, "size"),
    "too many": ({"prompt": "a", "n": 11}, "n"),
    "a misspelt field": ({"prompt": "a", "guidence_scale": 3}, "guidence_scale"),
    "one with a dash": ({"prompt": "a", "negative-prompt": "b"}, "negative-prompt"),
    "a seed below zero": ({"prompt": "a", "seed": -1}, "seed"),
    "steps of text": ({"prompt": "a", "num_inference_steps": "many"}, "num_inference_steps"),
    "a format that is not written": ({"prompt": "a", "response_format": "url"}, "response_format"),
    "no prompt": ({}, "prompt"),
    "not a number": ({"prompt": "a", "guidance_scale": "nan"}, "guidance_scale"),
    "half of a surrogate pair": ({"prompt": "a \ud83d"}, "prompt"),
}


@pytest.mark.parametrize("body, field", WRONG.values(), ids=WRONG)
def test_a_wrong_generation_names_its_field(address, body, field):
    content = json.dumps({"model": "tiny"} | body)  # in ASCII, which half of a surrogate pair can be written in
    headers = {"Content-Type": "application/json"}
    refused(httpx2.post(f"{address}/v1/images/generations", content=content, headers=headers), 400, field)


@pytest.mark.parametrize(
    "body, field",
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "cat", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages"),
        ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}, "messages"),
        ({"messages": [turn("hi")], "tools": [{"type": "function"}]}, "tools"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [turn("hi")] * 1001}, "messages"),
        ({"messages": [turn("hi") | {"image": []}]}, "messages.0.image"),
        ({"messages": [turn("hi") | {"tool_calls": [{"id": "1"}]}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "image_url": {}}]}]},
         "messages.0.content.0.image_url"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 101}]}, "messages.0.content"),
        ({"messages": [turn("a" * 60_000)] * 2}, "messages"),
        ({"messages": [turn("hi")], "n": 2}, "n"),
        ({"messages": [turn("hi")], "temperature": 3}, "temperature"),
        ({"messages": [turn("hi")], "modalities": ["audio"]}, "modalities.0"),
        ({"messages": [turn("hi")], "max_tokens": 0}, "max_tokens"),
        ({"messages": [turn("hi")], "max_tokens": 1024}, "messages"),  # more than the model's positions
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]}, "messages"),
    ],
)  # fmt: skip
def test_a_wrong_chat_names_its_field(address, body, field):
    content, headers = json.dumps({"model": "tiny"} | body), {"Content-Type": "application/json"}
    answer = httpx2.post(f"{address}/v1/chat/completions", content=content, headers=headers)
    refused(answer, 400, None)
    assert answer.json()["error"]["param"].startswith(field)


def refused(answer: httpx2.Response, status: int, field: str | None) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"] and error["type"] and "code" in error
    if field is not None:
        assert error["param"] == field
        assert field == "body" or f"`{field}`" in error["message"]
    return error


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)], ids=["empty", "text", "png"]
)
def test_an_upload_that_is_no_picture(address, content):
    files, data = {"image": ("a.png", content)}, {"prompt": "green"}
    refused(httpx2.post(f"{address}/v1/images/edits", files=files, data=data), 400, "image")


def test_an_upload_of_too_many_pixels_is_not_opened(address):
    huge = as_png(Image.new("1", (8_000, 8_000)))
    answer = httpx2.post(f"{address}/v1/images/edits", files={"image": huge}, data={"prompt": "green"})
    assert "million" in refused(answer, 400, "image")["message"]


def test_damaged_metadata_hides_no_pixels(address):
    """Pillow can't open such a file; it is read without the chunk, and its pixels are counted then."""
    whole = as_png(Image.new("1", (8_000, 8_000)))
    chunk = b"\x00\x00\x00\x04tEXtab\x00c" + b"\x00\x00\x00\x00"  # of a wrong checksum
    huge = whole[:33] + chunk + whole[33:]
    answer = httpx2.post(f"{address}/v1/images/edits", files={"image": huge}, data={"prompt": "green"})
    assert "at most 50 million" in refused(answer, 400, "image")["message"]


def test_an_icon_may_hold_more_than_it_says(address, picture):
    buffer = io.BytesIO()
    picture.save(buffer, format="ICO")
    answer = httpx2.post(f"{address}/v1/images/edits", files={"image": buffer.getvalue()}, data={"prompt": "green"})
    assert "must be one of PNG" in refused(answer, 400, "image")["message"]


def test_what_clients_send_for_nothing(client, picture):
    """OpenAI's client sends None where a user gives it, and a form has only texts."""
    settings = {"seed": 1, "num_inference_steps": 1}
    client.images.generate(model="tiny", prompt="a", n=None, user=None, extra_body=settings)
    client.images.edit(model="tiny", prompt="a", image=as_png(picture), stream=False, extra_body=settings)
    nothing = dict.fromkeys(("stop", "tools", "max_tokens", "logprobs", "response_format", "store", "function_call"))
    client.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        stream_options={"include_usage": None},
        extra_body={**nothing, **settings, "max_completion_tokens": 2, "prompt_cache_retention": "24h"},
    )


def test_an_edit_takes_one_picture(address, picture):
    png, path = as_png(picture), f"{address}/v1/images/edits"
    refused(httpx2.post(path, files=[("image[]", png), ("image[]", png)], data={"prompt": "green"}), 400, "image")
    refused(httpx2.post(path, data={"prompt": "green"}), 400, "image")
    refused(httpx2.post(path, files={"image": png}, data={"prompt": "green", "steps": "3"}), 400, "steps")
    refused(httpx2.post(path, files={"image": png, "mask": png}, data={"prompt": "green"}), 400, "mask")


def test_unknown_addresses_models_and_methods(address, client):
    with pytest.raises(openai.NotFoundError, match="must be one of tiny"):
        client.images.generate(model="large", prompt="a")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("large")
    refused(httpx2.get(f"{address}/v1/embeddings"), 404, None)
    refused(httpx2.get(f"{address}/v1/images/generations"), 405, None)
    json_error = httpx2.post(
        f"{address}/v1/images/generations", content=b"{", headers={"Content-Type": "application/json"}
    )
    refused(json_error, 400, "body")


def test_large_requests(pipe):
    settings = ServerSettings(max_body_bytes=100_000)
    with serving(pipe, settings) as (address, _):
        chat, edits = f"{address}/v1/chat/completions", f"{address}/v1/images/edits"
        large = {"model": "tiny", "messages": [turn("a" * 200_000)]}
        assert refused(httpx2.post(chat, json=large), 413, None)["code"] == "request_too_large"
        refused(httpx2.post(edits, files={"image": bytes(200_000)}, data={"prompt": "a"}), 413, None)

        def chunks():  # which announce no length
            for _ in range(40):
                yield b" " * 5_000

        refused(httpx2.post(chat, content=chunks(), headers={"Content-Type": "application/json"}), 413, None)


def test_keys(pipe):
    with serving(pipe, ServerSettings(api_keys=("first", "second-ключ", "слух"))) as (address, _):
        path = f"{address}/v1/models"
        for header in (
            {},
            {"Authorization": "Bearer third"},
            {"Authorization": "Basic first"},
            {"Authorization": "first"},
        ):
            assert refused(httpx2.get(path, headers=header), 401, None)["code"] == "invalid_api_key"
        for key in ("first", "second-ключ", "слух"):  # the last byte of the third is a space in latin-1
            assert httpx2.get(path, headers={"Authorization": f"Bearer {key}".encode()}).status_code == 200
        assert httpx2.get(f"{address}/health").status_code == 200


def test_addresses_are_fetched_from_listed_hosts_only(pipe, picture, served_files):
    body = {"model": "tiny", "max_tokens": 2, "seed": 1}

    def ask(server: str, address: str) -> httpx2.Response:
        content = [{"type": "image_url", "image_url": {"url": address}}]
        return httpx2.post(
            f"{server}/v1/chat/completions", json=body | {"messages": [{"role": "user", "content": content}]}
        )

    with serving(pipe) as (server, _):
        error = refused(ask(server, f"http://{served_files}/picture.png"), 400, None)
        assert "fetches no addresses" in error["message"]
    with serving(pipe, ServerSettings(allowed_hosts=(served_files,))) as (server, _):
        fetched = ask(server, f"http://{served_files}/picture.png")
        assert fetched.json()["choices"] == ask(server, as_address(picture)).json()["choices"]
        wrong = ["missing.png", "moved"]  # redirects may lead anywhere
        assert "404" in refused(ask(server, f"http://{served_files}/{wrong[0]}"), 400, None)["message"]
        assert "302" in refused(ask(server, f"http://{served_files}/{wrong[1]}"), 400, None)["message"]
        for other in ("http://127.0.0.1:1/picture.png", f"http://{served_files}@example.com/a", "file:///etc/passwd"):
            refused(ask(server, other), 400, None)


@pytest.fixture
def served_files(picture):
    """host:port of a server of one picture, and of a redirect."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = {"/picture.png": 200, "/moved": 302}.get(self.path, 404)
            body = as_png(picture) if found == 200 else b""
            self.send_response(found)
            self.send_header("Content-Length", str(len(body)))
            if found == 302:
                self.send_header("Location", "/picture.png")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def patient(address: str, prompt: str = "a cat", timeout: float = 60) -> httpx2.Response:
    return httpx2.post(f"{address}/v1/images/generations", json={"prompt": prompt, "seed": 1}, timeout=timeout)


def until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def slow_pipe():
    """A picture takes seconds."""
    return build_pipe(default_size=256, default_num_inference_steps=SLOW)


def test_a_full_queue_refuses(slow_pipe):
    with serving(slow_pipe, max_batch_size=1, max_waiting=1) as (address, engine):
        threads = [threading.Thread(target=leave_early, args=(address, 3)) for _ in range(2)]
        for thread, waiting in zip(threads, (0, 1), strict=True):
            thread.start()
            until(lambda: (engine.num_running, engine.num_waiting) == (1, waiting))  # noqa: B023
        answer = patient(address)
        assert refused(answer, 429, None)["code"] == "queue_full"
        assert int(answer.headers["Retry-After"]) >= 1
        for thread in threads:
            thread.join()
        until(lambda: engine.num_waiting == engine.num_running == 0)


def test_more_pictures_than_may_wait_are_refused_by_name(pipe):
    with serving(pipe, max_waiting=2) as (address, _):
        path, body = f"{address}/v1/images/generations", {"prompt": "a", "num_inference_steps": 1}
        assert "at most 2" in refused(httpx2.post(path, json=body | {"n": 3}), 400, "n")["message"]
        assert len(httpx2.post(path, json=body | {"n": 2}).json()["data"]) == 2


def test_too_many_at_the_door(slow_pipe):
    """Before a body is read: bodies take memory."""
    with serving(slow_pipe, ServerSettings(max_requests=1)) as (address, engine):
        thread = threading.Thread(target=leave_early, args=(address, 2))
        thread.start()
        until(lambda: engine.num_running == 1)
        assert refused(patient(address), 429, None)["code"] == "queue_full"
        assert httpx2.get(f"{address}/v1/models").status_code == 200
        thread.join()
        until(lambda: patient_status(address) == 400)


def patient_status(address: str) -> int:
    return httpx2.post(f"{address}/v1/images/generations", json={"prompt": ""}).status_code


def leave_early(address: str, seconds: float) -> None:
    with pytest.raises(httpx2.TimeoutException):
        patient(address, timeout=seconds)


def test_a_client_that_leaves_takes_its_request_along(slow_pipe):
    with serving(slow_pipe) as (address, engine):
        start = time.monotonic()
        leave_early(address, 0.5)
        until(lambda: engine.num_running == 0)
        alone = time.monotonic() - start
        # A stream, too.
        body = {"messages": [{"role": "user", "content": "hi"}], "modalities": ["image"], "stream": True}
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(f"{address}/v1/chat/completions", json=body, timeout=0.5)
        until(lambda: engine.num_running == 0)
        assert 'status="499"' in httpx2.get(f"{address}/metrics").text
        assert alone < 10


def test_an_answer_that_takes_too_long(slow_pipe):
    with serving(slow_pipe, ServerSettings(timeout=0.3)) as (address, engine):
        assert refused(patient(address), 504, None)["code"] == "timeout"
        until(lambda: engine.num_running == 0)


def test_a_stop_finishes_what_has_begun_and_refuses_the_rest():
    pipe = build_pipe(default_size=128, default_num_inference_steps=200)
    from running_server import running_server

    from uniwetok_hf.serving.engine import LocalEngine

    engine = LocalEngine(pipe, "tiny", max_batch_size=1)
    answers = {}

    def ask(number: int) -> None:
        answers[number] = patient(address)

    with running_server(engine) as (address, server):
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        threads[0].start()
        until(lambda: engine.num_running == 1)
        for thread in threads[1:]:
            thread.start()
        until(lambda: engine.num_waiting == 3)
        server.should_exit = True
        for thread in threads:
            thread.join()
    by_status = sorted(answer.status_code for answer in answers.values())
    assert by_status == [200, 503, 503, 503]
    expected = pipe("a cat", generator=seeded(1)).images[0]
    for answer in answers.values():
        if answer.status_code == 200:
            assert opened(answer.json()["data"][0]["b64_json"]) == expected
        else:
            assert refused(answer, 503, None)["code"] == "stopping"


def test_the_metrics_count(pipe):
    with serving(pipe) as (address, _):
        patient(address)
        httpx2.post(f"{address}/v1/images/generations", json={})
        httpx2.get(f"{address}/v1/made-up")
        text = httpx2.get(f"{address}/metrics").text
    numbers = dict(re.findall(r"^(uniwetok\S+) (\S+)$", text, re.MULTILINE))
    path = 'path="/v1/images/generations"'
    assert numbers[f'uniwetok_requests_total{{{path},status="200"}}'] == "1.0"
    assert numbers[f'uniwetok_requests_total{{{path},status="400"}}'] == "1.0"
    assert numbers['uniwetok_requests_total{path="other",status="404"}'] == "1.0"
    assert numbers['uniwetok_tokens_total{kind="generated"}'] == "4.0"
    assert numbers['uniwetok_batch_size_count{kind="picture"}'] == "1.0"
    assert numbers["uniwetok_requests_waiting"] == numbers["uniwetok_requests_running"] == "0.0"
    assert "process_resident_memory_bytes" in text
