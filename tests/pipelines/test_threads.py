# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""One pipeline, the pipelines that share its parts, and conversations with it, used from several threads: what each
gives is what it gives alone."""

import copy
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_mllm import answer_with_pictures, seeded, with_random_weights
from tiny_models import build_tiny_pipeline

from uniwetok_hf import UniWeTokConversation, UniWeTokEditPipeline, UniWeTokPipeline


@pytest.fixture(scope="module")
def pipe() -> UniWeTokPipeline:
    pipe = build_tiny_pipeline(1, default_size=64)
    with_random_weights(pipe.mllm)
    answer_with_pictures(pipe.mllm, pipe.processor)
    return pipe


@pytest.fixture(scope="module")
def edit_pipe(pipe) -> UniWeTokEditPipeline:
    edit_pipe = UniWeTokEditPipeline.from_pipe(pipe)
    edit_pipe.set_progress_bar_config(disable=True)
    return edit_pipe


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Python goes from thread to thread a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def picture(side: int = 64, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def in_threads(jobs: list[Callable[[], object]]) -> list:
    """The results of all jobs, each run in a thread of its own, or the exceptions that they raised."""
    results: list = [None] * len(jobs)
    start = threading.Barrier(len(jobs))

    def run(index: int) -> None:
        start.wait()
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


def as_bytes(pictures: list[Image.Image]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def converse(pipe) -> list[bytes]:
    talk = UniWeTokConversation(pipe)
    replies = [talk.say(words, generator=seeded(4), num_inference_steps=3) for words in ("draw", "again")]
    return as_bytes([image for reply in replies for image in reply.images])


def test_same_seed_same_picture_whatever_else_runs(pipe, edit_pipe, quick_switches):
    """Other numbers of steps, prompts of other lengths (padded or not), another pipeline, text, conversations."""

    def generate(prompt, steps):
        return lambda: as_bytes(pipe(prompt, generator=seeded(0), num_inference_steps=steps).images)

    jobs = [
        generate("a cat", 1),
        generate(["a cat", "a much longer prompt than the other"], 4),
        lambda: as_bytes(edit_pipe(picture(), "a cat", generator=seeded(1), num_inference_steps=3).images),
        lambda: edit_pipe.describe_results([picture(), picture(seed=1)], ["red", "a longer instruction"]),
        lambda: converse(pipe),
        lambda: [encoded.codes.tolist() for encoded in pipe.encode_image([picture(96, seed=2), picture(64)])],
    ]
    alone = [job() for job in jobs]
    assert len(alone[4]) == 2
    for _ in range(3):
        assert in_threads(jobs) == alone


def test_texts_of_any_padding_at_once(pipe, quick_switches):
    """transformers' tokenizers keep the padding of the last call."""
    processor = pipe.processor
    jobs = [
        lambda: [processor(text=["a", "longer"])["input_ids"].tolist() for _ in range(200)],
        lambda: [processor(text=["a", "longer"], padding=False, return_tensors=None)["input_ids"] for _ in range(200)],
        lambda: [
            processor(text=["abc" * 5], truncation=True, max_length=4, padding="max_length")["input_ids"].tolist()
            for _ in range(200)
        ],
    ]
    alone = [job() for job in jobs]
    assert in_threads(jobs) == alone


def test_what_a_pipeline_tells_is_of_the_call_of_this_thread(pipe):
    inside, seen = threading.Barrier(2), {}

    def generate(name, height, guidance):
        def callback(one, step, count, tensors):
            if step == 0:
                inside.wait(60)  # both calls run
                seen[name] = one.guidance_scale, one.do_classifier_free_guidance, one.num_timesteps, count
            one._interrupt = name == "stopped"

        codes = pipe(
            "a", height, 64, guidance_scale=guidance, callback_on_step_end=callback, output_type="latent"
        ).images
        return int((codes == 0).any()), pipe.interrupt, pipe.guidance_scale, pipe.num_timesteps

    results = in_threads([lambda: generate("stopped", 64, 1.0), lambda: generate("whole", 96, 3.0)])
    assert seen == {"stopped": (1.0, False, 4, 4), "whole": (3.0, True, 6, 6)}
    assert results == [(1, True, 1.0, 4), (0, False, 3.0, 6)]


def test_another_thread_stops_all_calls(pipe):
    running, go_on = threading.Barrier(3), threading.Event()

    def generate():
        def callback(one, step, count, tensors):
            if step == 0:
                running.wait(60)
                go_on.wait(60)

        pipe("a", callback_on_step_end=callback, output_type="latent")
        return pipe.interrupt

    def stop():
        running.wait(60)
        pipe._interrupt = True
        go_on.set()
        return pipe.interrupt

    assert in_threads([generate, generate, stop]) == [True, True, False]
    assert (pipe("a", output_type="latent").images != 0).all()


def test_a_callback_may_generate_too(pipe):
    alone = pipe("a cat", generator=seeded(0), output_type="latent").images
    seen = []

    def callback(one, step, count, tensors):
        one("b", 32, 32, guidance_scale=1.0, generator=seeded(1), num_inference_steps=5)
        seen.append((one.num_timesteps, one.guidance_scale))

    nested = pipe("a cat", generator=seeded(0), output_type="latent", callback_on_step_end=callback).images
    assert torch.equal(nested, alone) and seen == [(4, 2.0)] * 4


def test_a_generation_leaves_the_scheduler_alone(pipe):
    pipe.scheduler.set_timesteps(6)
    before = pipe.scheduler.timesteps.clone()
    pipe("a cat", num_inference_steps=3, output_type="latent")
    assert torch.equal(pipe.scheduler.timesteps, before)


def test_a_pipeline_is_copied_without_its_calls(pipe):
    pipe("a cat", output_type="latent")
    other = copy.deepcopy(pipe)
    assert not other.interrupt and pipe.num_timesteps == 4
    with pytest.raises(AttributeError, match="num_timesteps"):
        _ = other.num_timesteps


def test_threads_take_turns_in_one_conversation(pipe, tmp_path):
    talk = UniWeTokConversation(pipe)

    def say(number):
        return lambda: talk.say(f"picture {number}", generator=seeded(number), num_inference_steps=1).codes[0]

    answers = in_threads([say(number) for number in range(4)])
    order = [int(turn["content"][0]["text"].split()[1]) for turn in talk.messages[::2]]
    assert sorted(order) == [0, 1, 2, 3] and len(talk.messages) == 8
    again = UniWeTokConversation(pipe)
    for number, codes in zip(order, talk.codes, strict=True):
        assert torch.equal(codes, answers[number])
        same = again.say(f"picture {number}", generator=seeded(number), num_inference_steps=1)
        assert torch.equal(same.codes[0], codes)


def test_a_callback_cannot_take_a_turn(pipe):
    talk = UniWeTokConversation(pipe)
    with pytest.raises(RuntimeError, match="A callback of `say`"):
        talk.say("draw", callback_on_step_end=lambda *_: talk.say("more"))
    assert talk.messages == [] and len(talk.say("draw").codes) == 1
