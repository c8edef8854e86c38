# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Jobs give what the pipelines give, byte for byte; what they check; how text is told while it grows."""

import copy
from dataclasses import replace

import pytest
import torch
from one_device import DEVICE, one_device
from tiny_serving import (
    MANY_BYTES,
    Answer,
    answer_alone,
    answer_of,
    build_serving_pipeline,
    chat,
    edit,
    generation,
    picture,
    tokens_of,
)

from uniwetok_hf.serving.batches import TextRow, generate_pictures, generate_texts
from uniwetok_hf.serving.jobs import Jobs
from uniwetok_hf.serving.requests import ChatRequest, Finished, PicturePart, Request, TextPart


@pytest.fixture(scope="module", params=[1, 2], ids=["single tokens", "patches"])
def jobs(request) -> Jobs:
    return Jobs(build_serving_pipeline(request.param))


@pytest.fixture
def side(jobs) -> int:
    """Pixels of a patch's side."""
    return 32 * jobs.pipe.processor.patch_size


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
    requests = [edit(picture(side, side), "green"), edit(picture(side, side), "D", seed=1, guidance_scale=3.0)]
    requests.append(edit(picture(side, side), "P"))  # begins with no picture: a description has at least one token
    answers = [work(jobs, request) for request in requests]
    assert answers == [answer_alone(jobs.pipe, request) for request in requests]
    assert answers[0].descriptions[0] and answers[1].descriptions == ["a red one"] and answers[2].descriptions[0]


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


def test_several_pictures_of_a_turn_are_those_of_a_conversation(jobs):
    """Their noise is drawn from one generator."""
    settings = jobs.pipe.mllm.generation_config
    before, begin = settings.sequence_bias, jobs.pipe.processor.vision_start_token_id
    settings.sequence_bias = [[[begin], 5000.0]]
    request = chat("draw on", seed=4)
    answer = work(jobs, request)
    assert answer == answer_alone(jobs.pipe, request)
    settings.sequence_bias = before
    assert len(set(answer.pictures)) == 4  # the most: this model never ends its turn


def test_parts_come_in_their_order(jobs):
    def told(request):
        return [part.text if isinstance(part, TextPart) else type(part) for part in parts_of(jobs, request)]

    assert told(chat("draw B")) == ["H", "i", PicturePart, " o", "k", Finished]
    assert told(chat("draw P")) == [PicturePart, "o", "k", Finished]


def test_what_an_answer_may_hold(jobs):
    alone = answer_alone(jobs.pipe, chat("draw P", seed=2))
    picture_only = work(jobs, chat("draw P", seed=2, modalities=("image",)))
    assert picture_only == Answer("", alone.pictures, [None]) and picture_only.reason == "stop"
    text_only = work(jobs, chat("draw B", modalities=("text",), max_new_tokens=8))
    assert text_only.text.startswith("Hi") and not text_only.pictures
    assert len(work(jobs, chat("what is it", modalities=("image",))).pictures) == 1


def test_text_comes_in_whole_characters(jobs):
    parts = [part.text for part in parts_of(jobs, chat("say M")) if isinstance(part, TextPart)]
    assert "".join(parts) == MANY_BYTES.strip()
    assert parts == ["\u00fc", " \u20ac", "\U0001f600", "\n \u65e5", "\u672c"]
    [part, end] = parts_of(jobs, chat("say M", max_new_tokens=1))  # a text that ends in the middle
    assert part.text == "\ufffd" and end.reason == "length"


def test_text_that_is_drawn(jobs):
    hot = {"temperature": 1.5, "max_new_tokens": 12}
    answers = [work(jobs, chat("what is it", seed=seed, **hot)).text for seed in (1, 2, 1)]
    assert answers[0] == answers[2] != answers[1]
    greedy = work(jobs, chat("what is it", max_new_tokens=12))
    assert work(jobs, chat("what is it", seed=1, top_p=1e-6, **hot)) == greedy


def test_text_holds_no_parts_of_pictures(jobs):
    """What a hot text writes is read again behind it."""
    config, settings = jobs.pipe.mllm.config, jobs.pipe.mllm.generation_config
    before = settings.sequence_bias
    queries = range(config.query_token_id, config.query_token_id + config.tokens_per_patch - 1)
    settings.sequence_bias = [[[token], 100.0] for token in (config.image_token_id, *queries)]
    begin = jobs.pipe.processor.vision_start_token_id
    settings.sequence_bias += [[[token, begin], 200.0] for token in range(256)]  # a picture behind any letter
    parts = parts_of(jobs, chat("draw", temperature=1.0, seed=1))
    settings.sequence_bias = before
    assert sum(isinstance(part, PicturePart) for part in parts) == 4


def test_texts_at_the_end_of_the_positions(jobs):
    most = jobs.pipe.mllm.config.text_config.max_position_embeddings
    num_read = jobs.pipe.processor(text=[jobs._conversation_text(chat("B"))])["input_ids"].shape[1]
    block = jobs.pipe.mllm.config.tokens_per_patch
    used = len(tokens_of(jobs.pipe, "Hi <|vision_start|>")) + 2 + block - 1 + block + 1  # by text and picture

    def full(max_new_tokens: int, more: int = 0) -> ChatRequest:
        return chat("x" * (most - num_read - max_new_tokens + more) + "B", max_new_tokens=max_new_tokens)

    with pytest.raises(ValueError, match="`messages`: .* are more than the 1024 that the model's positions reach"):
        work(jobs, full(used, more=1))
    alone = answer_alone(jobs.pipe, full(used))
    for left, text, reason in ((0, "Hi", "length"), (1, "Hi o", "length"), (3, "Hi ok", "stop")):
        answer = work(jobs, full(used + left))
        assert (answer.text, answer.reason, len(answer.pictures)) == (text, reason, 1)
        assert left > 0 or answer.pictures == alone.pictures


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": -1}, "`seed` must be a whole number from 0 to 2^63 - 1, got -1"),
        ({"seed": 2**63}, "`seed` must be"),
        ({"seed": 0.5}, "`seed` must be"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be a whole number of 1 or more"),
        ({"guidance_scale": float("nan")}, "`guidance_scale` must be a number"),
        ({"height": 33}, "`height` must be a multiple of"),
        ({"width": 100_000}, "`width` must be a multiple of"),
    ],
)
def test_bad_settings_are_refused(jobs, change, words):
    for request in (generation("a"), edit(picture(64, 64), "a"), chat("a")):
        with pytest.raises(ValueError, match=words.replace("^", r"\^")):
            jobs.check(replace(request, **change))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (generation(" "), "`prompt` must not be empty"),
        (generation(["a", "b"]), "`prompt` must be one text"),
        (generation("a <|im_end|>"), "`prompt` must not hold the special tokens"),
        (generation("a" * 2000), "`prompt`: .* are more than the 1024"),
        (generation("a", negative_prompt="a" * 2000), "`negative_prompt`: .* are more than"),
        (generation("a" * 10**5), "`prompt` has 100000 characters; at most 16384 are read"),
        (edit(picture(64, 64), "a", negative_prompt="a" * 10**5), "`negative_prompt` has 100000 characters"),
        (chat("a", "b", "a" * 10**5), "`messages` has .* characters; at most 16384 are read"),
        (edit(None, "a"), "`image` must be one PIL image, got NoneType"),
        (edit([picture(64, 64)], "a"), "`image` must be one PIL image, got list"),
        (edit(picture(64, 64), "<|image_pad|>"), "`prompt` must not hold the special tokens"),
        (edit(picture(64, 64), "a", negative_prompt="<|im_end|>"), "`negative_prompt` must not hold"),
        (edit(picture(64, 64), "a", image_guidance_scale="1"), "`image_guidance_scale` must be a number"),
        (chat("a <|image_pad|>"), "must not hold the special tokens"),
        (chat("a", max_new_tokens=0), "`max_new_tokens` must be a whole number of 1 or more"),
        (chat("a", temperature=-0.1), "`temperature` must be 0 or more"),
        (chat("a", temperature=float("inf")), "`temperature` must be a number"),
        (chat("a", top_p=0), "`top_p` must be over 0 and at most 1, got 0"),
        (chat("a", top_p=1.5), "`top_p` must be over 0 and at most 1"),
        (chat("a", modalities=()), "`modalities` must hold 'text', 'image' or both"),
        (chat("a", modalities=("audio",)), "`modalities` must hold"),
        (replace(chat("a"), messages=()), "`conversation` must be a list of messages"),
        (replace(chat("a"), messages=({"role": "user", "content": [{}]},)), "`conversation`: an item must be"),
        (replace(chat("a"), images=(picture(64, 64),)), "show 0 pictures, `images` has 1"),
        (replace(chat(picture(64, 64)), images=()), "show 1 pictures, `images` has 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_requests_are_refused(jobs, request_, words):
    with pytest.raises(ValueError, match=words):
        jobs.check(request_)


def test_the_largest_seed(jobs):
    request = generation("a", seed=2**63 - 1)
    assert work(jobs, request) == answer_alone(jobs.pipe, request)


def test_pictures_that_the_model_cannot_read(jobs):
    for request in (edit(picture(5000, 32), "a"), chat([picture(5000, 32), "a"])):
        with pytest.raises(ValueError, match="`height` must be a multiple of"):
            work(jobs, request)


def test_a_model_stays_as_it_is(jobs):
    """Its dtype, mixed ones too."""
    pipe = copy.deepcopy(jobs.pipe).to(torch.bfloat16)
    pipe.mllm.image_head.to(torch.float32)
    Jobs(pipe)
    dtypes = {name.split(".")[0]: parameter.dtype for name, parameter in pipe.mllm.named_parameters()}
    assert dtypes == {"model": torch.bfloat16, "image_head": torch.float32, "lm_head": torch.bfloat16}


def test_on_a_device(jobs, side):
    """One that fails where devices are mixed."""
    shown = picture(side, side)
    requests = [
        generation("a cat", negative_prompt="a dog"),
        edit(shown, "green", image_guidance_scale=1.5),
        chat([shown, "draw B"], seed=1),
        chat("what is it", temperature=1.3, top_p=0.8, max_new_tokens=4),
        chat("what is it", modalities=("text",), max_new_tokens=4),
    ]
    with one_device():
        pipe = copy.deepcopy(jobs.pipe).to(DEVICE)
        answers = [work(Jobs(pipe), request) for request in requests]
    for answer, alone in zip(answers, [work(jobs, request) for request in requests], strict=True):
        assert answer.text == alone.text and len(answer.pictures) == len(alone.pictures)
