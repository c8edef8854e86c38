# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Rows of one batch give what they give alone; how tokens are drawn; what ends a row."""

import pytest
import torch
from tiny_mllm import random_codes, seeded
from tiny_serving import build_serving_pipeline, tokens_of

from uniwetok_hf import UniWeTokPipeline
from uniwetok_hf.serving.batches import PictureRow, TextRow, _with_noise, generate_pictures, generate_texts


LETTERS = "abcdefgh"


@pytest.fixture(scope="module", params=[1, 2], ids=["single tokens", "patches"])
def pipe(request) -> UniWeTokPipeline:
    return build_serving_pipeline(request.param)


@pytest.fixture(scope="module")
def one_token_pipe() -> UniWeTokPipeline:
    return build_serving_pipeline(1)


def text_row(pipe, words: str, max_new_tokens: int = 6, codes=(), **settings) -> TextRow:
    """The answer to `words` about pictures of `codes`."""
    content = [{"type": "image"}] * len(codes) + [{"type": "text", "text": words}]
    text = pipe.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    sizes = [(32 * one.shape[1], 32 * one.shape[2]) for one in codes]
    ids = pipe.processor(text=[text], picture_sizes=sizes or None)["input_ids"]
    ends = pipe.processor.turn_end_token_id, pipe.processor.vision_start_token_id
    row = {"adapter": "tiny", "input_ids": ids, "codes": [*codes], "max_new_tokens": max_new_tokens, "ends": ends}
    return TextRow(**row | settings)


def texts(pipe, rows, abandoned=None) -> list[list[int]]:
    return generate_texts(pipe, rows, abandoned or [lambda: False] * len(rows))


def picture_row(pipe, prompt: str, seed: int, negative: str | None = None, columns: int = 2, **settings) -> PictureRow:
    p = pipe.processor.patch_size
    size = 32 * p, 32 * p * columns
    inputs = pipe.encode_prompt(prompt, *size, negative_prompt=negative)
    row = {"adapter": "tiny", "inputs": inputs, "size": size, "num_inference_steps": 2, "guidance_scale": 2.0}
    return PictureRow(**row | {"generator": seeded(seed)} | settings)


def test_greedy_texts_of_a_batch_are_those_alone(pipe):
    p = pipe.processor.patch_size
    codes = [random_codes(p, 1, 2, seed) for seed in range(3)]
    calls = [("a", 7, []), ("a much longer question", 3, codes[:2]), ("b", 9, codes[2:]), ("draw B", 9, [])]
    rows = [text_row(pipe, *call) for call in calls]
    together = texts(pipe, rows)
    assert together == [texts(pipe, [row])[0] for row in rows]
    assert [len(tokens) for tokens in together[1:]] == [3, 9, 4]
    assert together[3] == tokens_of(pipe, "Hi <|vision_start|>")
    wanted = pipe.mllm.generate(rows[2].input_ids, codes=codes[2:], max_new_tokens=9, do_sample=False)
    assert together[2] == wanted[0, rows[2].input_ids.shape[1] :].tolist()


def test_what_ends_a_text_and_what_never_comes(pipe):
    plain = texts(pipe, [text_row(pipe, "a", 8)])[0]
    third = plain[2]
    first = plain.index(third) + 1
    assert texts(pipe, [text_row(pipe, "a", 8, ends=(third,))])[0] == plain[:first]
    banned = texts(pipe, [text_row(pipe, "a", 8, banned=(third,)), text_row(pipe, "a", 8)])
    assert third not in banned[0] and banned[1] == plain
    suppressed = texts(pipe, [text_row(pipe, "a", 8, banned_first=(plain[0],))])[0]
    assert suppressed[0] != plain[0]
    begin = pipe.processor.vision_start_token_id
    assert begin not in texts(pipe, [text_row(pipe, "draw P", banned=(begin,))])[0]


def test_tokens_are_told_one_by_one(one_token_pipe):
    told = [], []
    rows = [
        text_row(one_token_pipe, words, count, on_token=lambda tokens, index=index: told[index].append([*tokens]))
        for index, (words, count) in enumerate([("a", 5), ("longer", 2)])
    ]
    for tokens, steps in zip(texts(one_token_pipe, rows), told, strict=True):
        assert steps == [tokens[: length + 1] for length in range(len(tokens))]


def letters_row(pipe, seed: int, **settings) -> TextRow:
    """A row of which only eight letters can be drawn."""
    allowed = set(tokens_of(pipe, LETTERS))
    banned = tuple(token for token in range(len(pipe.processor.tokenizer)) if token not in allowed)
    return text_row(pipe, "a", **{"max_new_tokens": 1, "generator": seeded(seed)} | settings, banned=banned)


def probabilities(pipe, temperature: float) -> torch.Tensor:
    """Of the letters, as the first token of `letters_row`."""
    logits = pipe.mllm(letters_row(pipe, 0).input_ids).logits[0, -1, tokens_of(pipe, LETTERS)]
    return (logits.double() / temperature).softmax(0)


@torch.no_grad()
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7), (2.0, 0.5)])
def test_draws_follow_the_distribution(one_token_pipe, temperature, top_p):
    pipe, count = one_token_pipe, 1000
    rows = [letters_row(pipe, seed, temperature=temperature, top_p=top_p) for seed in range(count)]
    drawn = torch.tensor([tokens_of(pipe, LETTERS).index(tokens[0]) for tokens in texts(pipe, rows)])
    wanted = probabilities(pipe, temperature)
    if top_p < 1:
        order = wanted.argsort(descending=True)
        num_kept = int((wanted[order].cumsum(0) < top_p).sum()) + 1
        assert 1 < num_kept < len(LETTERS)
        wanted[order[num_kept:]] = 0
        wanted /= wanted.sum()
    counts = drawn.bincount(minlength=len(LETTERS)).double()
    assert counts[wanted == 0].sum() == 0
    kept = wanted > 0
    chi_square = ((counts - count * wanted)[kept] ** 2 / (count * wanted[kept])).sum()
    assert chi_square < 26  # exceeded once in 2000 seeds by 7 degrees of freedom; the seeds are fixed


@torch.no_grad()
def test_draws_are_those_of_the_seed_alone(pipe):
    """Whatever else is in the batch, and however long that is."""

    def rows():
        hot = {"temperature": 1.5, "top_p": 0.95}
        return [
            text_row(pipe, "a", 8, generator=seeded(5), **hot),
            text_row(pipe, "a", 3, generator=seeded(6), **hot),
            text_row(pipe, "a longer question", 12, generator=seeded(5), **hot),
            text_row(pipe, "greedy", 10),
        ]

    together, alone = rows(), rows()
    written = texts(pipe, together)
    assert written == [texts(pipe, [row])[0] for row in alone]
    assert written[0][:3] != written[1] and written == texts(pipe, rows())
    assert written[0] != texts(pipe, [text_row(pipe, "a", 8)])[0]
    for one, other in zip(together[:3], alone[:3], strict=True):  # what is drawn next is the same, too
        assert torch.equal(one.generator.get_state(), other.generator.get_state())


def test_a_tiny_temperature_is_greedy(one_token_pipe):
    greedy = texts(one_token_pipe, [text_row(one_token_pipe, "a")])[0]
    for temperature in (1e-4, 1e-30, 1e-45):
        row = text_row(one_token_pipe, "a", temperature=temperature, generator=seeded(0))
        assert texts(one_token_pipe, [row])[0] == greedy


def test_an_abandoned_text_ends_and_the_others_go_on(one_token_pipe):
    pipe, gone = one_token_pipe, []
    rows = [
        text_row(pipe, "a", 8, on_token=lambda tokens: gone.append(1) if len(tokens) == 3 else None),
        text_row(pipe, "b", 8),
    ]
    whole = texts(pipe, rows)
    gone.clear()
    written = texts(pipe, rows, [lambda: bool(gone), lambda: False])
    assert written == [whole[0][:4], whole[1]]
    gone.clear()
    written = texts(pipe, rows, [lambda: bool(gone)] * 2)
    assert written == [whole[0][:4], whole[1][:3]]


def test_pictures_of_a_batch_are_those_alone(pipe):
    def rows():
        return [
            picture_row(pipe, "a", 0),
            picture_row(pipe, "a much longer prompt", 0, negative="a dog"),
            picture_row(pipe, "a", 1, negative=""),
            picture_row(pipe, "blue", 2, negative="a long negative prompt"),
        ]

    together = generate_pictures(pipe, rows(), [lambda: False] * 4)
    alone = [generate_pictures(pipe, [row], [lambda: False])[0] for row in rows()]
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))
    assert len({one.numpy().tobytes() for one in together}) == 4
    assert all(one.abs().unique().tolist() == [1.0] for one in together)


def test_pictures_stop_once_nobody_wants_any(one_token_pipe):
    pipe, steps = one_token_pipe, []

    def gone(after: int):
        def check() -> bool:
            steps.append(after)
            return steps.count(after) >= after

        return check

    rows = [picture_row(pipe, "a", seed, columns=4) for seed in range(2)]
    codes = generate_pictures(pipe, rows, [gone(2), gone(10)])
    assert all((one != 0).all() for one in codes)  # one of them was wanted to the end
    steps.clear()
    codes = generate_pictures(pipe, rows, [gone(1), gone(2)])
    assert [int((one[0] != 0).sum()) for one in codes] == [2, 2]


def test_keys_tell_what_can_be_computed_together(one_token_pipe):
    pipe = one_token_pipe
    plain = picture_row(pipe, "a", 0)
    assert plain.key == picture_row(pipe, "other", 1, negative="x").key
    others = [
        picture_row(pipe, "a", 0, columns=1),
        picture_row(pipe, "a", 0, num_inference_steps=3),
        picture_row(pipe, "a", 0, guidance_scale=3.0),
        picture_row(pipe, "a", 0, image_guidance_scale=1.5),
        picture_row(pipe, "a", 0, adapter="one"),
        text_row(pipe, "a"),
        text_row(pipe, "a", adapter="one"),
    ]
    assert len({row.key for row in (plain, *others)}) == 8
    assert text_row(pipe, "a", 3).key == text_row(pipe, "longer", 9, temperature=1.0, generator=seeded(0)).key


def test_the_default_dtype_changes_no_draw():
    """Alone: biases of transformers fail under another default dtype."""

    def draw():
        return _with_noise(torch.zeros(1000, dtype=torch.float32), 1.0, 0.9, seeded(5))

    before, dtype = draw(), torch.get_default_dtype()
    try:
        for other in (torch.bfloat16, torch.float16, torch.float64):
            torch.set_default_dtype(other)
            assert torch.equal(draw(), before), other
    finally:
        torch.set_default_dtype(dtype)
