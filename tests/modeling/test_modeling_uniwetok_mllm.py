"""The unified model: masks, pixels and codes, writing, saving."""

import copy

import pytest
import torch
from tiny_mllm import (
    BITS,
    HIDDEN,
    PATCH_SIZES,
    build,
    picture_text,
    random_codes,
    seeded,
    shared,
    size_text,
    tokenize,
    training_batch,
)
from torch.nn import functional as F

from uniwetok_hf import UniWeTokForCausalLM, UniWeTokMLLMModel, UniWeTokModel
from uniwetok_hf.modeling.codes_uniwetok import codes_to_tokens
from uniwetok_hf.modeling.modeling_uniwetok_mllm import sinusoidal_positions


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


@pytest.mark.parametrize(
    "convert", [lambda model: model.to(torch.bfloat16), lambda model: model.half(), lambda model: model.bfloat16()]
)
def test_rotary_frequencies_stay_float32(convert):
    model = build()
    frequencies = model.model.language_model.rotary_emb.inv_freq.clone()
    convert(model)
    assert model.dtype != torch.float32
    rotary = model.model.language_model.rotary_emb
    assert torch.equal(rotary.inv_freq, frequencies) and torch.equal(rotary.original_inv_freq, frequencies)
    model.to("meta")
    assert rotary.inv_freq.device.type == "meta" and rotary.inv_freq.dtype == torch.float32
