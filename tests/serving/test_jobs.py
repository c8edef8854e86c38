# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Jobs give what the pipelines give, byte for byte; what they check; how text is told while it grows."""

import pytest
import torch
from tiny_mllm import seeded
from tiny_serving import (
    Answer,
    answer_alone,
    answer_of,
    build_serving_pipeline,
    chat,
    edit,
    generation,
    picture,
    pixels,
    tokens_of,
)

from uniwetok_hf import UniWeTokConversation
from uniwetok_hf.serving.batches import TextRow, generate_pictures, generate_texts
from uniwetok_hf.serving.jobs import Jobs
from uniwetok_hf.serving.requests import Finished, PicturePart, Request, TextPart


@pytest.fixture(scope="module", params=[1, 2], ids=["single tokens", "patches"])
def jobs(request) -> Jobs:
    return Jobs(build_serving_pipeline(request.param))


@pytest.fixture
def side(jobs) -> int:
    """Pixels of a patch's side."""
    return 32 * jobs.pipe.processor.patch_size


@pytest.fixture
def one_token_jobs(jobs):
    if jobs.pipe.processor.patch_size > 1:
        pytest.skip("the same with patches")
    return jobs


def parts_of(jobs: Jobs, request: Request) -> list:
    """All parts of an answer, whose rows are computed one by one."""
    jobs.check(request)
    parts: list = []
    job, result = jobs.start(request, parts.append), None
    while True:
        try:
            row = job.send(result)
        except StopIteration:
            return parts
        generate = generate_texts if isinstance(row, TextRow) else generate_pictures
        [result] = generate(jobs.pipe, [row], [lambda: False])


def work(jobs: Jobs, request: Request) -> Answer:
    return answer_of(parts_of(jobs, request))


@pytest.fixture
def described_first(jobs):
    """Edits have other defaults meanwhile, and answers of the pipeline, too."""
    pipes = jobs.pipe, jobs.edit_pipe
    changed = {"default_describe_first": True, "default_image_guidance_scale": 1.4, "default_negative_prompt": "stay"}
    before = {name: jobs.pipe.config[name] for name in changed}
    for pipe in pipes:
        pipe.register_to_config(**changed)
    yield
    for pipe in pipes:
        pipe.register_to_config(**before)


def test_pictures_are_those_of_the_pipeline(jobs, side):
    wide = {"height": side, "width": 2 * side, "num_inference_steps": 2}
    requests = [
        generation("a cat", seed=3),
        generation("a cat", seed=4),
        generation("a longer prompt", seed=3, negative_prompt="a dog", **wide),
        generation("a cat", negative_prompt="", guidance_scale=1.0),
        generation("a cat", width=2 * side),
    ]
    answers = [work(jobs, request) for request in requests]
    assert answers == [answer_alone(jobs.pipe, request) for request in requests]
    assert answers[0].pictures != answers[1].pictures
    assert parts_of(jobs, requests[0])[-1] == Finished("stop", *num_tokens(jobs, requests[0]))


def num_tokens(jobs: Jobs, request) -> tuple[int, int]:
    """Of a generation's prompt, and of its picture."""
    size = jobs.pipe.config.default_size
    inputs = jobs.pipe.encode_prompt(request.prompt, size, size)
    return inputs["input_ids"].shape[1], (size // 32) ** 2


def test_edits_are_those_of_the_pipeline(jobs, side):
    square, odd = picture(side, side), picture(side + 1, 2 * side - 5)
    requests = [
        edit(square, "green", seed=1),
        edit(odd, "green", seed=1),  # padded, and cut off again
        edit(square, "upside down", seed=2, height=2 * side),
        edit(square, "green", width=2 * side, height=side),
        edit(square, "green", image_guidance_scale=1.5, negative_prompt="nothing"),
        edit(square, "green", image_guidance_scale=1.5),
        edit(square, "green", guidance_scale=3.0, image_guidance_scale=3.0, num_inference_steps=2),
        edit(square, "green", guidance_scale=1.0, image_guidance_scale=2.0),
    ]
    answers = [work(jobs, request) for request in requests]
    assert answers == [answer_alone(jobs.pipe, request) for request in requests]
    assert len({answer.pictures[0] for answer in answers}) == len(answers)


def test_edits_that_are_described_first(jobs, side, described_first):
    requests = [edit(picture(side, side, seed), "green", seed, guidance_scale=g) for seed, g in ((0, None), (1, 3.0))]
    answers = [work(jobs, request) for request in requests]
    assert answers == [answer_alone(jobs.pipe, request) for request in requests]
    assert all(answer.descriptions[0] for answer in answers)
    assert answers[0].descriptions != answers[1].descriptions


def test_turns_are_those_of_a_conversation(jobs, side):
    shown = picture(side, side)
    requests = [
        chat("what is it", max_new_tokens=6),
        chat([shown, "and this"], max_new_tokens=5),
        chat("draw P", seed=1),
        chat("draw P", seed=2, width=2 * side, num_inference_steps=2, guidance_scale=3.0),
        chat([picture(side, 2 * side), "draw both B"], seed=3),
        chat([shown, "this"], "a cat", [picture(2 * side, side), "draw P"], seed=3),
        chat("draw", shown, "what is it", max_new_tokens=5),
    ]
    answers = [work(jobs, request) for request in requests]
    assert answers == [answer_alone(jobs.pipe, request) for request in requests]
    assert answers[0].text and not answers[0].pictures
    assert answers[2].text == "ok" and len(answers[2].pictures) == 1
    assert answers[4].text == "Hi ok" and len(answers[4].pictures) == 1
    reasons = [answer.reason for answer in answers]
    assert reasons == ["length", "length", "stop", "stop", "stop", "stop", "length"]
