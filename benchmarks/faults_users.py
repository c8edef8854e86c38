# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Ten users at once of `faults.py`, on one pipeline and on its web page."""

import importlib.util
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from faults_materials import Materials
from faults_trials import Kind, Wrong, in_child


USERS, QUESTIONS = 10, 4  # and how many different things each of them asks
WORDS = ("red", "blue", "a cat", "a much longer wish than the others", "two words")


class Users:
    """The kinds of this part: each is one trial, of `seconds`."""

    def __init__(self, materials: Materials, seconds: float):
        self.materials, self.seconds = materials, max(5.0, seconds)

    def kinds(self) -> list[Kind]:
        kinds = [Kind("users", "ten threads", range(1), self.trial(of_pipeline))]
        if importlib.util.find_spec("gradio"):
            kinds.append(Kind("users", "ten visitors of the page", range(1), self.trial(of_page)))
        return kinds

    def trial(self, job: Callable[[int, float, Path], object]) -> Callable[[int, Path], None]:
        def try_one(number: int, folder: Path) -> None:
            folder.mkdir(parents=True)
            ended = in_child(lambda: job(number, self.seconds, folder), folder, self.seconds + 600)
            if ended.code:
                raise Wrong(ended.last_words)
            print(ended.out.strip().splitlines()[-1], file=sys.stderr)

        return try_one


def build():
    """A tiny pipeline that draws in conversations, since its tokens lead there."""
    from tiny_mllm import answer_with_pictures, with_random_weights
    from tiny_models import build_tiny_pipeline

    pipe = build_tiny_pipeline(1, default_size=64)
    with_random_weights(pipe.mllm)
    answer_with_pictures(pipe.mllm, pipe.processor)
    return pipe


def seeded(seed: int):
    import torch

    return torch.Generator().manual_seed(seed)


def picture(seed: int):
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def wishes(pipe, numbers: random.Random) -> list[Callable[[], object]]:
    """What one user asks of a pipeline: a picture, an edit, an answer, a conversation."""
    from uniwetok_hf import UniWeTokConversation, UniWeTokEditPipeline
    from uniwetok_hf.pipelines.writing import answer_question

    edit = UniWeTokEditPipeline.from_pipe(pipe)
    edit.set_progress_bar_config(disable=True)
    seed, steps, words = numbers.randrange(1000), numbers.randrange(1, 4), numbers.choice(WORDS)

    def generate():
        return [one.tobytes() for one in pipe(words, generator=seeded(seed), num_inference_steps=steps).images]

    def change():
        output = edit(picture(seed), words, generator=seeded(seed), num_inference_steps=steps)
        return [one.tobytes() for one in output.images]

    def describe():
        return answer_question(pipe.mllm, pipe.processor, [picture(seed)], words, 6)

    def converse():
        talk = UniWeTokConversation(pipe)
        replies = [talk.say(text, generator=seeded(seed), num_inference_steps=steps) for text in (words, "again")]
        return [one.tobytes() for reply in replies for one in reply.images]

    return [generate, change, describe, converse]


def all_at_once(users: list[Callable[[], None]]) -> None:
    """Runs each in a thread of its own.

    Raises:
        Exception: the first that one of them raised.
    """
    errors: list[Exception] = []

    def run(user: Callable[[], None]) -> None:
        try:
            user()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def of_pipeline(number: int, seconds: float, folder: Path) -> None:
    """Each thread asks one thing after the other, and compares with what a single thread got."""
    pipe, numbers = build(), random.Random(number)
    asked = [wishes(pipe, random.Random(numbers.random())) for _ in range(USERS)]
    alone = [[wish() for wish in own] for own in asked]
    sys.setswitchinterval(1e-5)  # from thread to thread 500 times as often as usual
    end, answers = time.monotonic() + seconds, [0] * USERS

    def user(index: int) -> Callable[[], None]:
        order = random.Random(f"{number} {index}")

        def run() -> None:
            while time.monotonic() < end or answers[index] < QUESTIONS:
                which = order.randrange(QUESTIONS)
                if asked[index][which]() != alone[index][which]:
                    raise Wrong(f"thread {index}: {asked[index][which].__name__} gives something else than alone")
                answers[index] += 1

        return run

    all_at_once([user(index) for index in range(USERS)])
    print(f"{sum(answers)} answers in {seconds:.0f} s, each as alone")


def of_page(number: int, seconds: float, folder: Path) -> None:
    """Each visitor has a session of its own: its pictures and its conversation are those of its own words."""
    import gradio_client

    from uniwetok_hf.web_app import build_app, launch_options

    pipe = build()
    page = build_app(pipe, "tiny")
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    end, answers = time.monotonic() + seconds, [0] * USERS

    def user(index: int) -> Callable[[], None]:
        seed, words = 100 * number + index, f"wish {index}"
        drawn = pipe(words, generator=seeded(seed), num_inference_steps=1).images[0].tobytes()
        said = alone_in_conversation(pipe, words, seed)
        (folder / str(index)).mkdir()
        own = picture(index)
        own.save(folder / f"{index}.png")
        answer = alone_described(pipe, own)

        def run() -> None:
            options = {"download_files": str(folder / str(index)), "httpx_kwargs": {"timeout": 600}}
            while time.monotonic() < end or not answers[index]:
                client = gradio_client.Client(address, verbose=False, **options)
                image, _ = client.predict(words, seed=seed, steps=1, api_name="/generate")
                shown = gradio_client.handle_file(folder / f"{index}.png")
                found = client.predict(picture=shown, question="which?", api_name="/describe")
                client.predict({"text": words, "files": []}, seed, api_name="/converse")
                chat, _ = client.predict({"text": "again", "files": []}, seed, api_name="/converse")
                for name, got, expected in (
                    ("generate", pixels(image), drawn),
                    ("describe", found, answer),
                    ("converse", turns(chat), said),
                ):
                    if got != expected:
                        raise Wrong(f"visitor {index}: {name} gives {got!r:.200}, alone {expected!r:.200}")
                answers[index] += 4

        return run

    try:
        all_at_once([user(index) for index in range(USERS)])
    finally:
        page.close()
    print(f"{sum(answers)} answers in {seconds:.0f} s, each the visitor's own")


def alone_in_conversation(pipe, words: str, seed: int) -> tuple[list[str], list[bytes]]:
    from uniwetok_hf import UniWeTokConversation

    talk = UniWeTokConversation(pipe)
    replies = [talk.say(text, generator=seeded(seed)) for text in (words, "again")]
    return [words, "again"], [one.tobytes() for reply in replies for one in reply.images]


def alone_described(pipe, image) -> str:
    from uniwetok_hf.web_app import Studio

    (answer,) = Studio(pipe).describe(image, "which?")
    return answer


def pixels(path) -> bytes:
    from PIL import Image

    return Image.open(path["path"] if isinstance(path, dict) else path).convert("RGB").tobytes()


def turns(chat: list[dict]) -> tuple[list[str], list[bytes]]:
    """What the user said in a conversation of the page, and the pictures that the assistant showed."""
    said = [part["text"] for turn in chat if turn["role"] == "user" for part in turn["content"]]
    parts = [part for turn in chat if turn["role"] == "assistant" for part in turn["content"]]
    return said, [pixels(part["value"]) for part in parts if part.get("component") == "image"]
