"""The unified model: layout, masks, cached drawing against one forward over everything, writing, saving."""

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
    training_batch,
)
from torch.nn import functional as F
from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen3Config

from uniwetok_hf import UniWeTokForCausalLM, UniWeTokMLLMModel, UniWeTokModel
from uniwetok_hf.modeling.codes_uniwetok import codes_to_tokens, tokens_to_codes
from uniwetok_hf.modeling.flow_uniwetok import BinaryFlow
from uniwetok_hf.modeling.modeling_uniwetok_mllm import sinusoidal_positions


def last_positions(model: UniWeTokForCausalLM, ids: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """What the head should be told, by one forward over prompt and picture: the hidden state P positions before each
    token of the picture that ends `ids`, and the token's position. [1, h*w, hidden size]."""
    block, count = model.config.tokens_per_patch, codes[0].numel()
    with torch.no_grad():
        hidden = model.model(input_ids=ids, codes=[codes]).last_hidden_state
    places = torch.arange(ids.shape[1] - count, ids.shape[1]) - block
    table = sinusoidal_positions(*codes.shape[1:], HIDDEN)
    return hidden[:, places] + codes_to_tokens(table[None], model.config.patch_size)


# --- layout ---


def test_drawing_order_is_patch_by_patch_and_row_by_row_inside():
    codes = torch.arange(16.0).view(1, 1, 2, 8)
    assert codes_to_tokens(codes, 1)[0, :, 0].tolist() == list(range(16))
    assert codes_to_tokens(codes, 2)[0, :, 0].tolist() == [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
    square = torch.arange(64.0).view(1, 1, 8, 8)
    tokens = codes_to_tokens(square, 4)[0, :, 0].tolist()
    assert tokens[:8] == [0, 1, 2, 3, 8, 9, 10, 11]
    assert tokens[16:18] == [4, 5]
    assert tokens[32:34] == [32, 33]


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_tokens_to_codes_is_the_inverse(patch_size):
    codes = torch.randn(3, BITS, 2 * patch_size, 3 * patch_size, generator=seeded(0))
    tokens = codes_to_tokens(codes, patch_size)
    assert tokens.shape == (3, 6 * patch_size**2, BITS)
    assert torch.equal(tokens_to_codes(tokens, 2 * patch_size, 3 * patch_size, patch_size), codes)


def test_sinusoids_by_hand():
    table = sinusoidal_positions(2, 4, 8)
    assert table.shape == (8, 2, 4) and table.dtype == torch.float32
    column, row = torch.tensor([3.0, 0.03]), torch.tensor([1.0, 0.01])  # frequencies 1 and 10000^(-1/2)
    wanted = torch.cat([column.sin(), column.cos(), row.sin(), row.cos()])
    torch.testing.assert_close(table[:, 1, 3], wanted)
    torch.testing.assert_close(table[:, 0, 0], torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1]))


# --- blocks and masks ---


def two_pictures() -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Two rows in patches of 2 x 2: a short one, padded; one with two given pictures that begins a third."""
    codes = [random_codes(2, 1, 1, seed=1), random_codes(2, 1, 2, seed=2), random_codes(2, 1, 1, seed=3)]
    texts = (
        picture_text(codes[0], 2),
        f"a{picture_text(codes[1], 2)}b{picture_text(codes[2], 2)}{size_text(codes[2], 2)}",
    )
    return tokenize(*texts, patch_size=2), codes


def test_block_ids_by_hand():
    inputs, _ = two_pictures()
    text, pads = -1, inputs["input_ids"].shape[1] - 11
    first = [text] * pads + [text, text, 0, 0, 0, 0, 1, 1, 1, 1, text]
    second = [text, text, text] + [0] * 4 + [1] * 4 + [2] * 4 + [text]  # a, start, height | width and queries | ...
    second += [text, text, text] + [3] * 4 + [4] * 4 + [text]
    second += [text, text] + [5] * 4
    assert shared(2).model.block_ids(inputs["input_ids"]).tolist() == [first, second]


def boolean_mask(mask, length: int) -> torch.Tensor:
    """The mask that the sdpa attention gets, [B, queries, keys]."""
    mask = mask["full_attention"] if isinstance(mask, dict) else mask
    assert mask.dtype == torch.bool
    return mask[:, 0, :, :length]


def test_mask_is_causal_and_full_inside_patches():
    model, (inputs, _) = shared(2).model, two_pictures()
    ids, padding = inputs["input_ids"], inputs["attention_mask"].bool()
    blocks = model.block_ids(ids)
    embeddings = model.get_input_embeddings()(ids)
    mask = boolean_mask(model.block_causal_mask(embeddings, blocks, inputs["attention_mask"], None), ids.shape[1])
    for row, block in enumerate(blocks.tolist()):
        for i in padding[row].nonzero()[:, 0].tolist():
            for j in range(ids.shape[1]):
                one_patch = block[i] == block[j] != -1
                assert bool(mask[row, i, j]) == (bool(padding[row, j]) and (j <= i or one_patch)), (row, i, j)


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_hidden_states_depend_on_the_past_and_the_own_patch_only(patch_size):
    model = shared(patch_size)
    codes = random_codes(patch_size, 2, 2)
    ids = tokenize("abc" + picture_text(codes, patch_size) + "de", patch_size=patch_size)["input_ids"]
    block, first = patch_size**2, (ids[0] == model.config.image_token_id).nonzero()[0, 0].item()
    with torch.no_grad():
        before = model.model(input_ids=ids, codes=[codes]).last_hidden_state[0]
        changed = codes.clone()
        changed[:, -1, patch_size - 1] *= -1  # last token of the third patch
        after = model.model(input_ids=ids, codes=[changed]).last_hidden_state[0]
    moved = (after - before).abs().amax(-1) > 1e-6
    assert not moved[: first + 2 * block].any()
    assert moved[first + 2 * block :].all()


@pytest.mark.parametrize("patch_size", [1, 2])
def test_attention_implementations_agree(patch_size):
    model = copy.deepcopy(shared(patch_size))
    codes = [random_codes(patch_size, 1, 2), random_codes(patch_size, 2, 1)]
    inputs = tokenize(
        picture_text(codes[0], patch_size), "x" + picture_text(codes[1], patch_size), patch_size=patch_size
    )
    real = inputs["attention_mask"].bool()
    logits = []
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        assert model.model.language_model.config._attn_implementation == name
        with torch.no_grad():
            logits.append(model(**inputs, codes=codes).logits[real])
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


# --- drawing ---


def draw(model: UniWeTokForCausalLM, inputs: dict, **options):
    options = {"num_inference_steps": 3, "output_conditions": True} | options
    return model.generate_codes(inputs["input_ids"], inputs["attention_mask"], **options)


@pytest.mark.parametrize("num_modulation_layers", [1, 2])
@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_cached_drawing_equals_one_forward_over_everything(patch_size, num_modulation_layers):
    model = shared(patch_size, num_modulation_layers)
    empty = random_codes(patch_size, 2, 3)
    prompt, negative = (text + size_text(empty, patch_size) for text in ("draw a cat", ""))
    output = draw(
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
def test_training_tells_the_head_the_same_as_drawing(patch_size, num_modulation_layers):
    model = copy.deepcopy(shared(patch_size, num_modulation_layers))
    prompt = "draw a cat" + size_text(random_codes(patch_size, 2, 2), patch_size)
    output = draw(model, tokenize(prompt, patch_size=patch_size), generator=seeded(1))
    told = []
    model.image_head.register_forward_pre_hook(lambda module, inputs: told.append(inputs[2]))
    ids = tokenize(prompt + "<|image_pad|>" * output.codes[0, 0].numel(), patch_size=patch_size)["input_ids"]
    model(ids, codes=output.codes, image_is_target=torch.tensor([True]), labels=ids, generator=seeded(0))
    torch.testing.assert_close(told[0], torch.cat(output.conditions), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_cached_drawing_equals_drawing_without_a_cache(patch_size):
    model, generator = shared(patch_size), seeded(5)
    prompt = "a dog" + size_text(random_codes(patch_size, 1, 3), patch_size)
    drawn = draw(model, tokenize(prompt, patch_size=patch_size), generator=seeded(5)).codes
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
    assert torch.equal(tokens_to_codes(tokens, patch_size, 3 * patch_size, patch_size), drawn)


def make_sampler(steps: int) -> BinaryFlow:
    sampler = BinaryFlow()
    sampler.set_timesteps(steps)
    return sampler


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_a_row_draws_the_same_in_a_batch_as_alone(patch_size, guidance_scale):
    """Prompts of different lengths, one of which shows a picture; one generator a row."""
    model = shared(patch_size)
    shown = random_codes(patch_size, 1, 2, seed=9)
    end = size_text(random_codes(patch_size, 2, 2), patch_size)
    prompts = ["a" + end, f"edit {picture_text(shown, patch_size)} please" + end, "a longer prompt" + end]
    pictures = [[], [shown], []]
    negative = tokenize(end, patch_size=patch_size)["input_ids"]

    def run(rows: list[int]):
        return draw(
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


def test_one_negative_prompt_a_row_may_be_given():
    model, end = shared(1), size_text(random_codes(1, 2, 2), 1)
    prompts, negatives = tokenize("a" + end, "a cat" + end), tokenize("no" + end, end)
    options = {"guidance_scale": 2.0, "output_conditions": False}
    together = draw(
        model,
        prompts,
        negative_input_ids=negatives["input_ids"],
        negative_attention_mask=negatives["attention_mask"],
        generator=[seeded(0), seeded(1)],
        **options,
    )
    alone = draw(
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
    from_pixels = draw(model, inputs, pixel_values=pixels, generator=seeded(0))
    assert torch.equal(draw(model, inputs, codes=codes, generator=seeded(0)).codes, from_pixels.codes)


def test_scheduler_sets_the_times_of_drawing():
    model, end = shared(1), size_text(random_codes(1, 2, 2), 1)
    even = draw(model, tokenize("x" + end), generator=seeded(0))
    same, shifted = (
        draw(model, tokenize("x" + end), generator=seeded(0), scheduler=BinaryFlow(s)) for s in (1.0, 5.0)
    )
    assert torch.equal(even.codes, same.codes)
    assert not torch.equal(even.codes, shifted.codes)
    bent = build(1, head={"timestep_shift": 5.0})
    assert torch.equal(draw(bent, tokenize("x" + end), generator=seeded(0)).codes, shifted.codes)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_callback_sees_the_codes_so_far_and_can_stop(patch_size):
    model = shared(patch_size)
    inputs = tokenize("x" + size_text(random_codes(patch_size, 2, 2), patch_size), patch_size=patch_size)
    whole, seen = draw(model, inputs, generator=seeded(0)).codes, []

    def callback(step: int, codes: torch.Tensor) -> bool:
        seen.append((step, codes.clone()))
        return step == 2

    stopped = draw(model, inputs, generator=seeded(0), callback=callback)
    assert [step for step, _ in seen] == [0, 1, 2]
    assert len(stopped.conditions) == 3
    assert torch.equal(seen[2][1], stopped.codes)
    wanted = codes_to_tokens(whole, patch_size)
    for step, codes in seen:
        tokens, done = codes_to_tokens(codes, patch_size), (step + 1) * patch_size**2
        assert torch.equal(tokens[:, :done], wanted[:, :done])
        assert (tokens[:, done:] == 0).all()


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "qwen3 with windows"])
def test_other_text_models(kind, patch_size):
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
    end = size_text(random_codes(patch_size, 2, 2), patch_size)
    inputs = tokenize("a tiny cat" + end, "not such a tiny cat" + end, patch_size=patch_size)
    assert inputs["attention_mask"][0, 0] == 0
    output = draw(model, inputs, generator=seeded(0))
    count = output.codes[0, 0].numel()
    ids = tokenize("a tiny cat" + end + "<|image_pad|>" * count, patch_size=patch_size)["input_ids"]
    wanted = last_positions(model, ids, output.codes[0])
    torch.testing.assert_close(torch.cat(output.conditions, 1)[:1], wanted, atol=1e-5, rtol=1e-5)


# --- errors ---


def test_drawing_errors():
    model, end = shared(2), size_text(random_codes(2, 1, 1), 2)
    inputs = tokenize("x" + end, patch_size=2)
    for text in ("x", "a cat on a mat", "x" + end + "y", "x" + end[:-1]):
        with pytest.raises(ValueError, match="input_ids"):
            draw(model, tokenize(text, patch_size=2))
    with pytest.raises(ValueError, match="one size"):
        draw(model, tokenize("x" + end, "x" + size_text(random_codes(2, 1, 2), 2), patch_size=2))
    with pytest.raises(ValueError, match="patches of 2 x 2"):
        draw(model, tokenize("x" + end.replace("<|res_2|>", "<|res_3|>"), patch_size=2))
    with pytest.raises(ValueError, match="negative_input_ids"):
        draw(model, inputs, guidance_scale=2.0)
    guided = {"guidance_scale": 2.0, "image_guidance_scale": 1.0, "negative_input_ids": inputs["input_ids"]}
    for ids in (None, inputs["input_ids"].repeat(2, 1)):
        with pytest.raises(ValueError, match="image_guidance_scale.*image_input_ids"):
            draw(model, inputs, image_input_ids=ids, **guided)
    with pytest.raises(ValueError, match="image_guidance_scale.*pictures"):
        draw(model, inputs, image_input_ids=inputs["input_ids"], **guided)
    with pytest.raises(ValueError, match="generator"):
        draw(model, inputs, generator=[seeded(0), seeded(1)])
    with pytest.raises(ValueError, match="num_inference_steps"):
        draw(model, inputs, num_inference_steps=0)


def test_forward_errors():
    model, codes = shared(2), random_codes(2, 1, 1)
    ids = tokenize(picture_text(codes, 2), patch_size=2)["input_ids"]
    with pytest.raises(ValueError, match="4 image placeholders.* 8 tokens"):
        model(ids, codes=[codes, codes])
    with pytest.raises(ValueError, match="pixel_values.*codes"):
        model(ids, codes=[codes], pixel_values=torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="input_ids"):
        model()
    with pytest.raises(ValueError, match="input_ids"):
        model(inputs_embeds=torch.zeros(1, 4, HIDDEN), codes=[codes])
    with pytest.raises(ValueError, match="patch_size"):
        flash = copy.deepcopy(model)
        flash.model.language_model.config._attn_implementation = "flash_attention_2"
        flash(ids, codes=[codes])


# --- pictures as pixels ---


def test_pixels_padded_listed_or_encoded_before_are_the_same():
    model = shared(1)
    pixels = [torch.rand(3, 32 * h, 32 * w, generator=seeded(h)) * 2 - 1 for h, w in ((1, 2), (2, 1))]
    codes = model.vision_model.encode(pixels).codes
    assert [tuple(c.shape) for c in codes] == [(BITS, 1, 2), (BITS, 2, 1)]
    inputs = tokenize(*(f"see {picture_text(c, 1)}" for c in codes))
    padded = torch.stack([F.pad(p, (0, 64 - p.shape[2], 0, 64 - p.shape[1])) for p in pixels])
    sizes = torch.tensor([[32, 64], [64, 32]])
    with torch.no_grad():
        wanted = model(**inputs, codes=codes).logits
        assert torch.equal(model(**inputs, pixel_values=pixels).logits, wanted)
        assert torch.equal(model(**inputs, pixel_values=padded, image_sizes=sizes).logits, wanted)
        assert not torch.allclose(model(**inputs, codes=[-c for c in codes]).logits, wanted, atol=1e-3)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_image_features_are_what_the_placeholders_become(patch_size):
    model = shared(patch_size)
    pixels = torch.rand(1, 3, 64 * patch_size, 32 * patch_size, generator=seeded(0)) * 2 - 1
    features = model.get_image_features(pixels)
    codes = model.vision_model.encode(pixels).codes
    tokens = codes_to_tokens(codes, patch_size)[0]
    table = codes_to_tokens(sinusoidal_positions(*codes.shape[2:], HIDDEN)[None], patch_size)[0]
    assert torch.equal(features.last_hidden_state, tokens)
    [embedded] = features.pooler_output
    torch.testing.assert_close(embedded, model.model.projector(tokens) + table)
    as_tuple = model.get_image_features(pixels, return_dict=False)
    assert torch.equal(as_tuple[1][0], embedded)
    two = model.get_image_features([pixels[0], pixels[0, :, : 32 * patch_size]]).pooler_output
    assert [len(picture) for picture in two] == [2 * patch_size**2, patch_size**2]
    torch.testing.assert_close(two[0], embedded)
    ids = tokenize(picture_text(codes[0], patch_size), patch_size=patch_size)["input_ids"]
    embeddings = model.get_input_embeddings()(ids)
    embeddings = embeddings.masked_scatter((ids == model.config.image_token_id)[..., None], embedded)
    if patch_size == 1:  # causal: embeddings alone say everything
        torch.testing.assert_close(model(inputs_embeds=embeddings).logits, model(ids, codes=codes).logits)


def test_outputs_as_tuple_and_hidden_states():
    model, inputs = shared(1), tokenize("abc")
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
        assert len(output.hidden_states) == 3
        torch.testing.assert_close(model.lm_head(output.hidden_states[-1]), output.logits)
        assert torch.equal(model(**inputs, return_dict=False)[0], output.logits)
        torch.testing.assert_close(model(**inputs, logits_to_keep=1).logits, output.logits[:, -1:])


# --- writing text ---


def captions() -> tuple[list[str], list[torch.Tensor]]:
    return ["x", "what is that? "], [random_codes(2, 1, 1, seed=1), random_codes(2, 1, 2, seed=2)]


def write(model: UniWeTokForCausalLM, inputs: dict, count: int = 8, **options) -> torch.Tensor:
    ids = model.generate(**inputs, **{"max_new_tokens": count, "do_sample": False} | options)
    return ids[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("patch_size", [1, 2])
def test_greedy_text_is_the_argmax_of_whole_forwards(patch_size):
    model, codes = shared(patch_size), random_codes(patch_size, 1, 2)
    inputs = tokenize(f"see {picture_text(codes, patch_size)} what?", patch_size=patch_size)
    ids = inputs["input_ids"]
    with torch.no_grad():
        for _ in range(8):
            ids = torch.cat([ids, model(ids, codes=[codes]).logits[:, -1:].argmax(-1)], dim=1)
    wanted = ids[:, inputs["input_ids"].shape[1] :]
    assert len(wanted.unique()) > 2
    for options in ({}, {"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}):
        assert torch.equal(write(model, inputs, codes=[codes], **options), wanted), options
    pixels = torch.rand(1, 3, 32 * patch_size, 64 * patch_size, generator=seeded(0)) * 2 - 1
    seen = model.vision_model.encode(pixels).codes
    assert torch.equal(write(model, inputs, pixel_values=pixels), write(model, inputs, codes=seen))


@pytest.mark.parametrize("pictures", [True, False])
def test_text_of_a_batch_is_that_of_single_rows(pictures):
    model, (words, codes) = shared(2), captions()
    texts = [w + picture_text(c, 2) for w, c in zip(words, codes, strict=True)] if pictures else words

    def inputs(rows: list[int]) -> dict:
        given = {"codes": [codes[row] for row in rows]} if pictures else {}
        return tokenize(*(texts[row] for row in rows), patch_size=2) | given

    together = write(model, inputs([0, 1]))
    for row in range(2):
        assert torch.equal(write(model, inputs([row]))[0], together[row])


def test_sampled_text_follows_the_seed():
    model, inputs = shared(1), tokenize("once upon a time")

    def sample(seed: int) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return write(model, inputs, do_sample=True)

    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))


@pytest.mark.parametrize("as_codes", [True, False])
def test_several_answers_to_a_row_of_several_pictures(as_codes):
    """Each copy of a row keeps its own pictures, in their order."""
    model = shared(1)
    pixels = torch.rand(3, 3, 32, 64, generator=seeded(0)) * 2 - 1
    codes = model.vision_model.encode(pixels).codes
    texts = ["both: " + picture_text(codes[0], 1) + picture_text(codes[1], 1), picture_text(codes[2], 1) + "?"]
    given = {"codes": list(codes)} if as_codes else {"pixel_values": pixels}
    inputs = tokenize(*texts) | given
    greedy = write(model, inputs)
    beams = write(model, inputs, count=1, num_beams=2, num_return_sequences=2)
    with torch.no_grad():
        best = model(**inputs).logits[:, -1].topk(2).indices
    assert torch.equal(greedy[:, 0], best[:, 0])
    assert torch.equal(beams.view(2, 2), best)


# --- saving, tying, resizing ---


@pytest.mark.parametrize("tie", [False, True])
def test_saved_and_loaded(tmp_path, tie):
    model = build(2, tie_word_embeddings=tie, bit_flip_probability=0.03)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tie
    model.save_pretrained(tmp_path)
    loaded, info = UniWeTokForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tie
    assert loaded.config.bit_flip_probability == 0.03
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    inputs, codes = training_batch(2)
    assert torch.equal(model(**inputs, codes=codes).logits, loaded(**inputs, codes=codes).logits)


def test_parts_load_alone(tmp_path):
    model = shared(1)
    model.save_pretrained(tmp_path)
    for part_class, part in ((UniWeTokModel, model.vision_model), (UniWeTokMLLMModel, model.model)):
        loaded, info = part_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["mismatched_keys"]
        assert all(torch.equal(a, b) for a, b in zip(part.parameters(), loaded.parameters(), strict=True))


def test_tied_embeddings_learn_as_one():
    model, (inputs, codes) = build(1, tie_word_embeddings=True).train(), training_batch()
    model(**inputs, codes=codes, generator=seeded(0)).loss.backward()
    assert "lm_head.weight" not in dict(model.named_parameters())
    assert model.lm_head.weight.grad.abs().max() > 0


def test_vocabulary_can_grow():
    model, (inputs, codes) = build(1), training_batch()
    before = model(**inputs, codes=codes).logits
    size = model.config.text_config.vocab_size
    model.resize_token_embeddings(size + 5, mean_resizing=False)
    output = model(**inputs, codes=codes)
    assert model.config.text_config.vocab_size == size + 5
    torch.testing.assert_close(output.logits[..., :size], before)
    inputs["labels"][0, -1] = size + 4
    assert model(**inputs, codes=codes).text_loss.isfinite()
