"""Generation of pictures: the cached loop against one forward over everything, rows of a batch, callbacks, errors."""

import copy

import pytest
import torch
from tiny_mllm import (
    BITS,
    HIDDEN,
    PATCH_SIZES,
    build,
    picture_text,
    processor,
    random_codes,
    seeded,
    shared,
    size_text,
    tokenize,
)
from torch.nn import functional as F
from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen3Config, StaticCache

from uniwetok_hf import UniWeTokForCausalLM
from uniwetok_hf.modeling.codes_uniwetok import codes_to_tokens, tokens_to_codes
from uniwetok_hf.modeling.flow_uniwetok import BinaryFlow
from uniwetok_hf.modeling.modeling_uniwetok_mllm import sinusoidal_positions


def last_positions(model: UniWeTokForCausalLM, ids: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The head's conditions, by one forward over prompt and picture: the hidden state P positions before each
    token of the picture that ends `ids`, and the token's position. [1, h*w, hidden size]."""
    block, count = model.config.tokens_per_patch, codes[0].numel()
    with torch.no_grad():
        hidden = model.model(input_ids=ids, codes=[codes]).last_hidden_state
    places = torch.arange(ids.shape[1] - count, ids.shape[1]) - block
    table = sinusoidal_positions(*codes.shape[1:], HIDDEN)
    return hidden[:, places] + codes_to_tokens(table[None], model.config.patch_size)


def generate(model: UniWeTokForCausalLM, inputs: dict, **options):
    options = {"num_inference_steps": 3, "output_conditions": True} | options
    return model.generate_codes(inputs["input_ids"], inputs["attention_mask"], **options)


@pytest.mark.parametrize("cache_implementation", ["dynamic", "static"])
@pytest.mark.parametrize("num_modulation_layers", [1, 2])
@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_cached_generation_equals_one_forward_over_everything(
    patch_size, num_modulation_layers, cache_implementation, monkeypatch
):
    model = shared(patch_size, num_modulation_layers)
    monkeypatch.setattr(model.generation_config, "cache_implementation", cache_implementation)
    empty = random_codes(patch_size, 2, 3)
    prompt, negative = (text + size_text(empty, patch_size) for text in ("draw a cat", ""))
    output = generate(
        model,
        tokenize(prompt, patch_size=patch_size),
        negative_input_ids=tokenize(negative, patch_size=patch_size)["input_ids"],
        guidance_scale=2.0,
        generator=seeded(1),
    )
    assert output.codes.shape == (1, BITS, 2 * patch_size, 3 * patch_size)
    assert output.codes.abs().unique().tolist() == [1.0]
    assert -0.9 < output.codes.mean() < 0.9
    assert len(output.conditions) == 6
    conditions = torch.cat(output.conditions, dim=1)  # conditional row, unconditional row
    for row, text in enumerate((prompt, negative)):
        ids = tokenize(text + "<|image_pad|>" * output.codes[0, 0].numel(), patch_size=patch_size)["input_ids"]
        wanted = last_positions(model, ids, output.codes[0])
        torch.testing.assert_close(conditions[row : row + 1], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_modulation_layers", [1, 2])
@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_training_tells_the_head_the_same_as_generation(patch_size, num_modulation_layers):
    model = copy.deepcopy(shared(patch_size, num_modulation_layers))
    prompt = "draw a cat" + size_text(random_codes(patch_size, 2, 2), patch_size)
    output = generate(model, tokenize(prompt, patch_size=patch_size), generator=seeded(1))
    told = []
    model.image_head.condition_proj.register_forward_pre_hook(lambda module, inputs: told.append(inputs[0]))
    ids = tokenize(prompt + "<|image_pad|>" * output.codes[0, 0].numel(), patch_size=patch_size)["input_ids"]
    model(ids, codes=output.codes, image_is_target=torch.tensor([True]), labels=ids, generator=seeded(0))
    torch.testing.assert_close(told[0], torch.cat(output.conditions), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_cached_generation_equals_generation_without_a_cache(patch_size):
    model, generator = shared(patch_size), seeded(5)
    prompt = "a dog" + size_text(random_codes(patch_size, 1, 3), patch_size)
    generated = generate(model, tokenize(prompt, patch_size=patch_size), generator=seeded(5)).codes
    block = patch_size**2
    tokens = torch.zeros(1, 0, BITS)
    for step in range(3):
        # The whole sequence is read again for each patch; tokens not drawn yet are wrong, and not seen.
        guess = F.pad(tokens, (0, 0, 0, (3 - step) * block), value=1.0)
        codes = tokens_to_codes(guess, patch_size, 3 * patch_size, patch_size)[0]
        ids = tokenize(prompt + "<|image_pad|>" * 3 * block, patch_size=patch_size)["input_ids"]
        condition = last_positions(model, ids, codes)[:, step * block : (step + 1) * block]
        sample = model.image_head.sample(condition, make_sampler(3), generator=generator)
        tokens = torch.cat([tokens, torch.where(sample > 0, 1.0, -1.0)], dim=1)
    assert torch.equal(tokens_to_codes(tokens, patch_size, 3 * patch_size, patch_size), generated)


def make_sampler(steps: int) -> BinaryFlow:
    sampler = BinaryFlow()
    sampler.set_timesteps(steps)
    return sampler


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_a_row_is_the_same_in_a_batch_as_alone(patch_size, guidance_scale):
    """Prompts of different lengths, one of which shows a picture; one generator per row."""
    model = shared(patch_size)
    shown = random_codes(patch_size, 1, 2, seed=9)
    end = size_text(random_codes(patch_size, 2, 2), patch_size)
    prompts = ["a" + end, f"edit {picture_text(shown, patch_size)} please" + end, "a longer prompt" + end]
    pictures = [[], [shown], []]
    negative = tokenize(end, patch_size=patch_size)["input_ids"]

    def run(rows: list[int]):
        return generate(
            model,
            tokenize(*(prompts[row] for row in rows), patch_size=patch_size),
            codes=[codes for row in rows for codes in pictures[row]] or None,
            negative_input_ids=negative,
            guidance_scale=guidance_scale,
            generator=[seeded(100 + row) for row in rows],
        )

    together = run([0, 1, 2])
    assert not torch.equal(together.codes[0], together.codes[2])
    for row in range(3):
        alone = run([row])
        assert torch.equal(alone.codes[0], together.codes[row])
        for batch, single in zip(together.conditions, alone.conditions, strict=True):
            rows = batch[row::3]  # its conditional and, with guidance, its unconditional row
            assert len(rows) == (2 if guidance_scale > 1 else 1)
            torch.testing.assert_close(rows, single, atol=1e-5, rtol=1e-5)


def test_one_negative_prompt_per_row_may_be_given():
    model, end = shared(1), size_text(random_codes(1, 2, 2), 1)
    prompts, negatives = tokenize("a" + end, "a cat" + end), tokenize("no" + end, end)
    options = {"guidance_scale": 2.0, "output_conditions": False}
    together = generate(
        model,
        prompts,
        negative_input_ids=negatives["input_ids"],
        negative_attention_mask=negatives["attention_mask"],
        generator=[seeded(0), seeded(1)],
        **options,
    )
    alone = generate(
        model,
        tokenize("a" + end),
        negative_input_ids=tokenize("no" + end)["input_ids"],
        generator=seeded(0),
        **options,
    )
    assert together.conditions is None
    assert torch.equal(together.codes[:1], alone.codes)


def test_pictures_in_the_prompt_may_come_as_pixels():
    model, end = shared(1), size_text(random_codes(1, 2, 2), 1)
    pixels = torch.rand(1, 3, 64, 32, generator=seeded(0)) * 2 - 1
    codes = model.vision_model.encode(pixels).codes
    inputs = tokenize("x" + picture_text(codes[0], 1) + end)
    from_pixels = generate(model, inputs, pixel_values=pixels, generator=seeded(0))
    assert torch.equal(generate(model, inputs, codes=codes, generator=seeded(0)).codes, from_pixels.codes)


def test_scheduler_sets_the_times_of_generation():
    model, end = shared(1), size_text(random_codes(1, 2, 2), 1)
    even = generate(model, tokenize("x" + end), generator=seeded(0))
    same, shifted = (
        generate(model, tokenize("x" + end), generator=seeded(0), scheduler=BinaryFlow(s)) for s in (1.0, 5.0)
    )
    assert torch.equal(even.codes, same.codes)
    assert not torch.equal(even.codes, shifted.codes)
    bent = build(1, head={"timestep_shift": 5.0})
    assert torch.equal(generate(bent, tokenize("x" + end), generator=seeded(0)).codes, shifted.codes)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_callback_sees_the_codes_so_far_and_can_stop(patch_size):
    model = shared(patch_size)
    inputs = tokenize("x" + size_text(random_codes(patch_size, 2, 2), patch_size), patch_size=patch_size)
    whole, seen = generate(model, inputs, generator=seeded(0)).codes, []

    def callback(step: int, codes: torch.Tensor) -> bool:
        seen.append((step, codes.clone()))
        return step == 2

    stopped = generate(model, inputs, generator=seeded(0), callback=callback)
    assert [step for step, _ in seen] == [0, 1, 2]
    assert len(stopped.conditions) == 3
    assert torch.equal(seen[2][1], stopped.codes)
    wanted = codes_to_tokens(whole, patch_size)
    for step, codes in seen:
        tokens, done = codes_to_tokens(codes, patch_size), (step + 1) * patch_size**2
        assert torch.equal(tokens[:, :done], wanted[:, :done])
        assert (tokens[:, done:] == 0).all()


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_a_static_cache_has_one_shape_for_all_patches(patch_size, attn_implementation):
    """Rows of two lengths, guidance by text and picture: what a compiled language model is called with."""
    model = copy.deepcopy(shared(patch_size))
    model.set_attn_implementation(attn_implementation)
    shown = random_codes(patch_size, 1, 2, seed=9)
    end = size_text(random_codes(patch_size, 2, 2), patch_size)
    prompts = [f"edit {picture_text(shown, patch_size)} please" + end, f"and {picture_text(shown, patch_size)}" + end]
    guidance = {
        "codes": [shown, shown],
        "guidance_scale": 3.0,
        "image_guidance_scale": 2.0,
        "negative_input_ids": tokenize(end, patch_size=patch_size)["input_ids"],
    }
    inputs, calls = tokenize(*prompts, patch_size=patch_size), []

    def watch(module, arguments, keywords):
        masks = keywords["attention_mask"]
        mask = masks["full_attention"] if isinstance(masks, dict) else masks
        calls.append((keywords["inputs_embeds"].shape, mask.shape, keywords["past_key_values"]))

    model.model.language_model.register_forward_pre_hook(watch, with_kwargs=True)
    results = {}
    for model.generation_config.cache_implementation in ("dynamic", "static"):
        calls.clear()
        results[model.generation_config.cache_implementation] = generate(
            model,
            inputs,
            image_input_ids=inputs["input_ids"],
            image_attention_mask=inputs["attention_mask"],
            generator=seeded(3),
            **guidance,
        )
    assert len(calls) == 4
    assert len({call[:2] for call in calls[1:]}) == 1
    assert isinstance(calls[0][2], StaticCache)
    assert calls[1][1][-1] == inputs["input_ids"].shape[1] + 4 * patch_size**2
    assert torch.equal(results["dynamic"].codes, results["static"].codes)
    for dynamic, static in zip(results["dynamic"].conditions, results["static"].conditions, strict=True):
        torch.testing.assert_close(dynamic, static, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("cache_implementation", ["dynamic", "static"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "qwen3 with windows"])
def test_other_text_models(kind, cache_implementation, patch_size):
    """With absolute positions and with windows; the row that is looked at is padded."""
    size = {"vocab_size": len(processor(patch_size).tokenizer), "hidden_size": HIDDEN, "intermediate_size": 48}
    size |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    small_window = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
    text_config = {
        "llama": lambda: LlamaConfig(**size),
        "gpt2": lambda: GPT2Config(
            vocab_size=size["vocab_size"], n_embd=HIDDEN, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
        ),
        "gemma3": lambda: Gemma3TextConfig(**size, **small_window),
        "qwen3 with windows": lambda: Qwen3Config(**size, **small_window, use_sliding_window=True),
    }[kind]()
    model = build(patch_size, text_config)
    model.generation_config.cache_implementation = cache_implementation
    end = size_text(random_codes(patch_size, 2, 2), patch_size)
    inputs = tokenize("a tiny cat" + end, "not such a tiny cat" + end, patch_size=patch_size)
    assert inputs["attention_mask"][0, 0] == 0
    output = generate(model, inputs, generator=seeded(0))
    count = output.codes[0, 0].numel()
    ids = tokenize("a tiny cat" + end + "<|image_pad|>" * count, patch_size=patch_size)["input_ids"]
    wanted = last_positions(model, ids, output.codes[0])
    torch.testing.assert_close(torch.cat(output.conditions, 1)[:1], wanted, atol=1e-5, rtol=1e-5)


def test_generation_errors():
    model, end = shared(2), size_text(random_codes(2, 1, 1), 2)
    inputs = tokenize("x" + end, patch_size=2)
    for text in ("x", "a cat on a mat", "x" + end + "y", "x" + end[:-1]):
        with pytest.raises(ValueError, match="input_ids"):
            generate(model, tokenize(text, patch_size=2))
    with pytest.raises(ValueError, match="one size"):
        generate(model, tokenize("x" + end, "x" + size_text(random_codes(2, 1, 2), 2), patch_size=2))
    with pytest.raises(ValueError, match="patches of 2 x 2"):
        generate(model, tokenize("x" + end.replace("<|res_2|>", "<|res_3|>"), patch_size=2))
    with pytest.raises(ValueError, match="negative_input_ids"):
        generate(model, inputs, guidance_scale=2.0)
    guided = {"guidance_scale": 2.0, "image_guidance_scale": 1.0, "negative_input_ids": inputs["input_ids"]}
    for ids in (None, inputs["input_ids"].repeat(2, 1)):
        with pytest.raises(ValueError, match="image_guidance_scale.*image_input_ids"):
            generate(model, inputs, image_input_ids=ids, **guided)
    with pytest.raises(ValueError, match="image_guidance_scale.*pictures"):
        generate(model, inputs, image_input_ids=inputs["input_ids"], **guided)
    with pytest.raises(ValueError, match="generator"):
        generate(model, inputs, generator=[seeded(0), seeded(1)])
    with pytest.raises(ValueError, match="num_inference_steps"):
        generate(model, inputs, num_inference_steps=0)


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_latents_are_filled_in_place(patch_size):
    model = shared(patch_size, 1)
    inputs = tokenize("draw a cat" + size_text(random_codes(patch_size, 2, 3), patch_size), patch_size=patch_size)
    wanted = generate(model, inputs, generator=seeded(1)).codes
    latents = torch.zeros_like(wanted)
    so_far = []
    output = generate(
        model, inputs, generator=seeded(1), latents=latents, callback=lambda _, codes: so_far.append(codes)
    )
    assert output.codes is latents and torch.equal(latents, wanted)
    filled = [(codes != 0).sum().item() for codes in so_far]  # what a callback keeps is not overwritten later
    assert filled == [BITS * patch_size**2 * (step + 1) for step in range(6)]
    with pytest.raises(ValueError, match="`latents` must be of shape"):
        generate(model, inputs, latents=latents[:, :, 1:])
