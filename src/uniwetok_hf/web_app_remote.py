# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The web page of `uniwetok app --server URL`, whose jobs a `uniwetok serve` does. No model is loaded here.

- The tabs are those of `web_app`, without that which needs the model itself (Reconstruct) and without previews.
- Text of a conversation appears as it is written.
- The server keeps nothing of a conversation: each turn sends all of it, pictures included.
- The server computes jobs of several visitors together, so that several run at a time.
"""

import time
from collections.abc import Iterator

from PIL import Image

from .data.images import png_bytes
from .embedded import EXAMPLES
from .serving.client import ServerClient, image_item, read_png
from .web_app import TABS, build_page, check_seed, check_settings, check_text, details_of


LONGEST_DESCRIPTION = 40  # tokens, as in `answer_question`


class RemoteStudio:
    """The jobs of [`Studio`] by a model of a server; its errors are sentences for the visitor, too.

    Args:
        client: of the server.
        model: name of the model.
        defaults: what the server says of it.
    """

    num_at_once = 16

    def __init__(self, client: ServerClient, model: str, defaults: dict):
        self.client, self.model, self.defaults = client, model, defaults

    def generate(
        self, prompt: str, seed: int, steps: int, guidance: float
    ) -> Iterator[tuple[Image.Image | None, str]]:
        """How long it has taken so far, and the picture, each with a line of details."""
        body = {"prompt": check_text(prompt, "Write what to generate."), **check_settings(seed, steps, guidance)}
        yield from _pictured(self.client.post("images/generations", json=body | {"model": self.model}))

    def edit(
        self, picture: Image.Image, instruction: str, seed: int, steps: int, guidance: float
    ) -> Iterator[tuple[Image.Image | None, str]]:
        """How long it has taken so far, and the changed picture, each with a line of details."""
        body = {"prompt": check_text(instruction, "Write what to change."), **check_settings(seed, steps, guidance)}
        files = {"image": ("image.png", png_bytes(picture), "image/png")}
        yield from _pictured(self.client.post("images/edits", data=body | {"model": self.model}, files=files))

    def describe(self, picture: Image.Image, question: str) -> Iterator[str]:
        """The answer to a question about a picture, as it grows."""
        content = [image_item(picture), {"type": "text", "text": check_text(question, "Write a question.")}]
        deltas = self.client.chat(
            model=self.model,
            messages=[{"role": "user", "content": content}],
            modalities=["text"],
            max_tokens=LONGEST_DESCRIPTION,
        )
        text = ""
        for came in deltas:
            text += "".join(delta.get("content") or "" for delta in came)
            yield " ".join(text.split())

    def converse(
        self, talk: list[dict] | None, text: str, pictures: list[Image.Image], seed: int
    ) -> Iterator[tuple[list[dict] | None, str, list[Image.Image], bool]]:
        """Goes on with a conversation: (messages, text, pictures, whether it is the whole answer), as the answer
        grows; text and pictures are empty where nothing came."""
        content = [image_item(picture) for picture in pictures]
        if text.strip():
            content.append({"type": "text", "text": text})
        messages = [*(talk or []), {"role": "user", "content": content}]
        answer, generated = [], []
        for came in self.client.chat(model=self.model, messages=messages, seed=check_seed(seed)):
            for delta in came:
                generated += [read_png(item["image_url"]["url"]) for item in delta.get("images") or []]
                _add(answer, delta)
            yield (talk, _text_of(answer), [*generated], False) if came else (talk, "", [], False)
        yield [*messages, {"role": "assistant", "content": answer}], _text_of(answer), generated, True


def _pictured(answers: Iterator[list[dict]]) -> Iterator[tuple[Image.Image | None, str]]:
    """The seconds while there is no answer, then its picture, each with a line of details."""
    start = time.monotonic()
    for came in answers:
        seconds = time.monotonic() - start
        if not came:
            yield None, f"waiting for the server, {seconds:.0f} s"
            continue
        found = came[0]["data"][0]
        picture = read_png(found["b64_json"])
        yield picture, details_of(picture, found["revised_prompt"], seconds)


def _add(answer: list[dict], delta: dict) -> None:
    """Adds to the content of an answer, texts and pictures in the order in which they come."""
    for item in delta.get("images") or []:
        answer.append({"type": "image_url", "image_url": {"url": item["image_url"]["url"]}})
    if words := delta.get("content"):
        if not answer or answer[-1]["type"] != "text":
            answer.append({"type": "text", "text": ""})
        answer[-1]["text"] = (answer[-1]["text"] + words).lstrip()


def _text_of(answer: list[dict]) -> str:
    return " ".join(" ".join(item["text"] for item in answer if item["type"] == "text").split())


def build_remote_app(client: ServerClient):
    """The page, a `gradio.Blocks`; `launch` it with the options of `launch_options`.

    Args:
        client: of the server, whose models the visitor chooses from.

    Raises:
        ValueError: when there is no such server, or it does not accept the key.
    """
    models = client.models()
    studios = {name: RemoteStudio(client, name, defaults) for name, defaults in models.items()}
    return build_page(studios, EXAMPLES.get(next(iter(models)), {}), TABS)


__all__ = ["RemoteStudio", "build_remote_app"]
