# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What `serving.py` asks a server, and what the pipelines answer to the same."""

import base64
import functools
import hashlib
import io
import json
import random
from dataclasses import dataclass


STYLES = ("noto", "fluent flat", "fluent")
EDITS = ("make the skin tone dark", "redraw in fluent style", "redraw in noto style", "make it blue")
QUESTIONS = ("what is this?", "which style is this?", "describe the emoji")
LONGEST_ANSWER = 40  # tokens
SMALL = 64  # pixels; pictures of another size than the model's own can't be in one batch with the others
SHARES = {"generation": 0.5, "edit": 0.2, "answer": 0.2, "chat": 0.1}


@dataclass(frozen=True)
class Ask:
    """One request.

    Args:
        kind: one of `SHARES`; "answer" is a question about a picture, "chat" a turn that is answered with a picture.
        words: prompt, instruction, question or turn.
        seed: of the answer.
        picture: number of the shipped picture that it shows.
        side: of the picture to generate, in pixels; the model's own when not given.
        stream: whether the answer is to come in pieces.
    """

    kind: str
    words: str
    seed: int
    picture: int | None = None
    side: int | None = None
    stream: bool = False

    def arguments(self) -> dict:
        """Path and content of the request, as httpx2 takes them."""
        body = {"seed": self.seed} | ({"size": f"{self.side}x{self.side}"} if self.side else {})
        if self.kind == "generation":
            return {"url": "/v1/images/generations", "json": body | {"prompt": self.words}}
        if self.kind == "edit":
            files = {"image": ("picture.png", png(self.picture), "image/png")}
            return {"url": "/v1/images/edits", "data": body | {"prompt": self.words}, "files": files}
        content = [{"type": "text", "text": self.words}]
        if self.picture is not None:
            url = f"data:image/png;base64,{base64.b64encode(png(self.picture)).decode()}"
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        body |= {"messages": [{"role": "user", "content": content}], "stream": self.stream}
        if self.kind == "answer":
            body |= {"modalities": ["text"], "max_tokens": LONGEST_ANSWER}
        return {"url": "/v1/chat/completions", "json": body}


@dataclass(frozen=True)
class Answer:
    """Text with single spaces, and a digest of the pixels of each picture."""

    text: str = ""
    pictures: tuple[str, ...] = ()


@functools.cache
def shipped() -> tuple:
    """The pictures of the package, which the embedded model was not trained on."""
    from uniwetok_hf.cli.demo_sections import shipped_pictures

    return tuple(shipped_pictures())


@functools.cache
def png(number: int) -> bytes:
    buffer = io.BytesIO()
    shipped()[number].image.save(buffer, format="PNG")
    return buffer.getvalue()


def digest(image) -> str:
    """Of the size and of every pixel."""
    return hashlib.sha256(repr(image.size).encode() + image.convert("RGB").tobytes()).hexdigest()


def draw_ask(kind: str, numbers: random.Random, seed: int) -> Ask:
    """A request of a kind."""
    subject, style = numbers.choice(shipped()), numbers.choice(STYLES)
    picture = numbers.randrange(len(shipped()))
    if kind == "generation":
        return Ask(kind, f"a {style} emoji of {subject.label}", seed)
    if kind == "edit":
        return Ask(kind, numbers.choice(EDITS), seed, picture)
    if kind == "answer":
        return Ask(kind, numbers.choice(QUESTIONS), seed, picture)
    return Ask(kind, f"draw {subject.label} in {style} style", seed)


def draw_mix(count: int, seed: int) -> list[Ask]:
    """`count` different requests of all kinds in their `SHARES`: some of another size, chats with and without a
    picture in them, every other conversation streamed."""
    numbers, asks = random.Random(seed), []
    for kind, share in SHARES.items():
        for index in range(max(1, round(share * count))):
            ask = draw_ask(kind, numbers, numbers.randrange(2**32))
            if kind == "generation" and index % 5 == 4:
                ask = Ask(kind, ask.words, ask.seed, side=SMALL)
            if kind == "chat" and index % 2:
                ask = Ask(kind, EDITS[index % len(EDITS)], ask.seed, numbers.randrange(len(shipped())))
            if kind in ("answer", "chat") and index % 4 < 2:
                ask = Ask(kind, ask.words, ask.seed, ask.picture, stream=True)
            asks.append(ask)
    return asks


def read_answer(ask: Ask, content: bytes) -> Answer:
    """The answer in the body of a response.

    Raises:
        ValueError, KeyError, TypeError, IndexError: when it is none.
    """
    if ask.stream:
        return _read_events(content)
    body = json.loads(content)
    if ask.kind in ("generation", "edit"):
        return Answer(pictures=tuple(_digest_of(item["b64_json"]) for item in body["data"]))
    message = body["choices"][0]["message"]
    return _as_answer(message["content"] or "", message.get("images", []))


def _read_events(content: bytes) -> Answer:
    """Of a stream, which must end as such."""
    lines = content.decode().split("\n\n")
    events = [line.removeprefix("data: ") for line in lines if line]
    if events[-1] != "[DONE]":
        raise ValueError("the stream ends without [DONE]")
    chunks = [json.loads(event) for event in events[:-1]]
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    if choices[-1]["finish_reason"] is None:
        raise ValueError("the stream ends without a reason")
    deltas = [choice["delta"] for choice in choices]
    text = "".join(delta.get("content") or "" for delta in deltas)
    return _as_answer(text, [image for delta in deltas for image in delta.get("images", [])])


def _as_answer(text: str, images: list[dict]) -> Answer:
    encoded = [image["image_url"]["url"].removeprefix("data:image/png;base64,") for image in images]
    return Answer(" ".join(text.split()), tuple(map(_digest_of, encoded)))


def _digest_of(encoded: str) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as image:
        return digest(image)


class References:
    """What the pipelines answer, one request at a time.

    Args:
        model: as `uniwetok serve` takes it.
        threads: of PyTorch; its own choice when not given.
    """

    def __init__(self, model: str | None, threads: int | None = None):
        import torch

        from uniwetok_hf import UniWeTokEditPipeline
        from uniwetok_hf.cli.loading import find_checkpoint, load_pipeline

        if threads:
            torch.set_num_threads(threads)
        self.pipe = load_pipeline(find_checkpoint(model, ("pipeline",)), "cpu")
        self.edit = UniWeTokEditPipeline.from_pipe(self.pipe)
        for pipe in (self.pipe, self.edit):
            pipe.set_progress_bar_config(disable=True)

    def answer(self, ask: Ask) -> Answer:
        """What a server should answer."""
        import torch

        from uniwetok_hf import UniWeTokConversation
        from uniwetok_hf.pipelines.writing import generate_text, question_texts

        picture = None if ask.picture is None else shipped()[ask.picture].image
        options = {"generator": torch.Generator().manual_seed(ask.seed), "height": ask.side, "width": ask.side}
        if ask.kind == "generation":
            return Answer(pictures=tuple(map(digest, self.pipe(ask.words, **options).images)))
        if ask.kind == "edit":
            return Answer(pictures=tuple(map(digest, self.edit(picture, ask.words, **options).images)))
        if ask.kind == "answer":
            processor, texts = self.pipe.processor, question_texts(self.pipe.processor, [ask.words])
            only_text = {
                "ends": [processor.turn_end_token_id],
                "suppress_tokens": [processor.vision_start_token_id],
            }
            [text] = generate_text(self.pipe.mllm, processor, texts, [picture], LONGEST_ANSWER, **only_text)
            return Answer(text)
        shown = () if picture is None else [picture]
        reply = UniWeTokConversation(self.pipe).say(ask.words, shown, **options)
        return Answer(reply.text, tuple(map(digest, reply.images)))
