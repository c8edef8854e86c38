import warnings

import pytest
import torch
from safetensors import safe_open

from tests.conversion.published import GOLDEN, to_published
from uniwetok_hf.conversion.configs import (
    abbreviate,
    infer_vision_fields,
    read_head_config,
    read_special_tokens,
    read_vision_config,
)
from uniwetok_hf.conversion.keys import VISION_RULES
from uniwetok_hf.conversion.layouts import PublishedPart, find_published
from uniwetok_hf.conversion.tensors import ConversionError
from uniwetok_hf.modeling.configuration_uniwetok import UniWeTokConfig
from uniwetok_hf.modeling.modeling_uniwetok import UniWeTokModel


def vision_part(shapes, settings=None):
    class Source:
        label = "ae.ckpt"

    return PublishedPart(Source(), settings, "ae_config.json" if settings else None), shapes


def published_shapes(**fields):
    with torch.device("meta"):
        state_dict = UniWeTokModel(UniWeTokConfig(**fields)).state_dict()
        return {name: tuple(tensor.shape) for name, tensor in to_published(state_dict, VISION_RULES).items()}


def golden_shapes(name):
    with safe_open(GOLDEN / name / "ae.safetensors", "pt") as reader:
        return {key: tuple(reader.get_slice(key).get_shape()) for key in reader.keys()}  # noqa: SIM118


SMALL = {
    "num_bits": 16,
    "base_channels": 32,
    "channel_multipliers": [1, 2],
    "num_res_blocks": 3,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
}


@pytest.mark.parametrize(
    "fields",
    [
        SMALL,
        SMALL | {"num_hidden_layers": 0},
        SMALL | {"architecture": "convolutional", "channel_multipliers": [2, 1, 3], "decoder_noise": False},
        SMALL | {"architecture": "convolutional"},
        {},
    ],
)
def test_config_is_told_by_the_tensors(fields):
    config = UniWeTokConfig(**fields)
    part, shapes = vision_part(published_shapes(**fields))
    found = read_vision_config(part, shapes, config.num_attention_heads)
    expected = config.to_dict()
    if config.num_hidden_layers == 0:
        expected["num_attention_heads"] = 16  # not told, and never used
    assert found.to_dict() == expected


def test_inferred_fields_name_their_evidence():
    fields = infer_vision_fields(golden_shapes("tokenizer_uniwetok"))
    assert {name: value for name, (value, _) in fields.items()} == {
        "architecture": "hybrid",
        "num_bits": 32,
        "num_channels": 3,
        "base_channels": 32,
        "channel_multipliers": [1, 1, 1, 1, 1, 2],
        "num_res_blocks": 1,
        "num_hidden_layers": 2,
        "decoder_noise": True,
    }
    assert fields["num_bits"][1] == "encoder.conv_out.weight"
    fields = infer_vision_fields(golden_shapes("tokenizer_bitdance"))
    assert (fields["architecture"][0], fields["decoder_noise"][0]) == ("convolutional", False)
    assert fields["num_hidden_layers"][0] == 0


def test_heads_are_assumed_with_a_warning():
    part, shapes = vision_part(golden_shapes("tokenizer_uniwetok"))
    with pytest.warns(UserWarning, match="attention heads of ae.ckpt: 16 are assumed"):
        assert read_vision_config(part, shapes).num_attention_heads == 16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_vision_config(part, shapes, 4).num_attention_heads == 4
        part, shapes = vision_part(golden_shapes("tokenizer_bitdance"))
        read_vision_config(part, shapes)  # has no attention


def test_heads_that_do_not_divide():
    part, shapes = vision_part(published_shapes(**SMALL | {"channel_multipliers": [1, 3]}))
    with pytest.raises(
        ConversionError, match="16 attention heads don't divide 96 channels.*pass `num_attention_heads`"
    ):
        read_vision_config(part, shapes)
    with pytest.raises(ConversionError, match="7 attention heads"):
        read_vision_config(part, shapes, 7)
    assert read_vision_config(part, shapes, 8).num_attention_heads == 8


def ddconfig(**changed):
    settings = {"ch": 32, "ch_mult": [1, 1, 1, 1, 1, 2], "num_res_blocks": 1, "z_channels": 32, "in_channels": 3}
    settings |= {"out_ch": 3, "double_z": False, "resolution": 64, "attn_blocks": 2, "n_heads": 4} | changed
    return {name: value for name, value in settings.items() if value is not None}


@pytest.mark.parametrize(
    "settings, num_heads",
    [
        ({"ddconfig": ddconfig(), "gan_decoder": True}, 4),
        ({"ddconfig": ddconfig()}, 4),
        ({"ddconfig": ddconfig(), "gan_decoder": False}, 4),  # the hybrid's decoder always reads noise
        ({"ddconfig": ddconfig(n_heads=None), "gan_decoder": True}, 16),  # the published code's default
        ({"ddconfig": ddconfig(n_heads=None, attn_blocks=None, ch_mult=None)}, 16),
        (ddconfig(), 4),
    ],
)
def test_json_of_a_hybrid(settings, num_heads):
    part, shapes = vision_part(golden_shapes("tokenizer_uniwetok"), settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = read_vision_config(part, shapes)
    assert config.num_attention_heads == num_heads
    assert config.decoder_noise
    assert config.num_hidden_layers == 2
    assert config.channel_multipliers == [1, 1, 1, 1, 1, 2]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"z_channels": 64}, "z_channels is 64, but encoder.conv_out.weight says 32"),
        ({"ch": 64}, "ch is 64, but encoder.conv_in.weight says 32"),
        ({"ch_mult": [1, 1, 2]}, r"ch_mult is \[1, 1, 2\], but .* says \[1, 1, 1, 1, 1, 2\]"),
        ({"num_res_blocks": 2}, "num_res_blocks is 2, but .* says 1"),
        ({"attn_blocks": 16}, "attn_blocks is 16, but encoder.mid_attn_blocks.* says 2"),
        ({"in_channels": 1, "out_ch": 1}, "in_channels is 1, but .* says 3"),
    ],
)
def test_json_and_tensors_disagree(changed, message):
    part, shapes = vision_part(golden_shapes("tokenizer_uniwetok"), {"ddconfig": ddconfig(**changed)})
    with pytest.raises(ConversionError, match=f"ae_config.json and ae.ckpt disagree: {message}"):
        read_vision_config(part, shapes)


def test_json_of_a_convolutional_tokenizer():
    settings = ddconfig(ch_mult=[1, 1, 1, 2], attn_blocks=None, n_heads=None)
    shapes = golden_shapes("tokenizer_bitdance")
    for noise in ({}, {"gan_decoder": False}):
        part, _ = vision_part(shapes, {"ddconfig": settings} | noise)
        assert not read_vision_config(part, shapes).decoder_noise
    part, _ = vision_part(shapes, {"ddconfig": settings, "gan_decoder": True})
    with pytest.raises(ConversionError, match="gan_decoder is True, but decoder.conv_in.weight says False"):
        read_vision_config(part, shapes)
    part, _ = vision_part(shapes, {"ddconfig": settings | {"attn_blocks": 2}})
    with pytest.raises(ConversionError, match="attn_blocks is 2, but .* says 0"):
        read_vision_config(part, shapes)


@pytest.mark.parametrize(
    "settings, given, message",
    [
        ({"ddconfig": ddconfig()}, 8, "`num_attention_heads` is 8, but ae_config.json says n_heads is 4"),
        ({"ddconfig": None}, None, "ae_config.json has no ddconfig"),
        ({"model_type": "x"}, None, "ae_config.json has no ddconfig"),
        ({"ddconfig": ddconfig(out_ch=1)}, None, "out_ch 1 differs from in_channels"),
        ({"ddconfig": ddconfig(n_heads="4")}, None, "4 attention heads don't divide"),
    ],
)
def test_bad_json(settings, given, message):
    part, shapes = vision_part(golden_shapes("tokenizer_uniwetok"), settings)
    with pytest.raises(ConversionError, match=message):
        read_vision_config(part, shapes, given)


def test_foreign_names():
    shapes = {f"foreign.{i}.weight": (4, 4) for i in range(20)}
    part, _ = vision_part(shapes)
    with pytest.raises(ConversionError) as caught:
        read_vision_config(part, shapes)
    message = str(caught.value)
    assert "ae.ckpt holds no published image tokenizer" in message
    assert "encoder.conv_in.weight" in message
    assert "foreign.0.weight, foreign.1.weight" in message
    assert "... (20 in all)" in message
    # With a JSON the config is known, and the strict check then lists both sets of names.
    part, _ = vision_part(shapes, {"ddconfig": ddconfig()})
    assert read_vision_config(part, shapes).architecture == "hybrid"


def test_misshaped_tensors_do_not_break_the_reading():
    shapes = golden_shapes("tokenizer_uniwetok")
    for name in ("encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.conv_in.weight"):
        for shape in ((), (3,), (0, 0, 0, 0)):
            part, _ = vision_part(shapes | {name: shape}, {"ddconfig": ddconfig()})
            assert read_vision_config(part, shapes | {name: shape}).num_bits == 32


HEAD = {"ch_target": 32, "ch_cond": 128, "ch_latent": 256, "depth_latent": 4, "depth_adanln": 2, "parallel_num": 16}


def head_part(**changed):
    settings = {name: value for name, value in (HEAD | changed).items() if value is not None}
    return PublishedPart(None, settings, "vision_head_config.json")


def test_head_config():
    given = {"time_shift": 2, "time_schedule": "uniform", "P_mean": 0.5, "P_std": 2, "use_swiglu": True}
    config, tokens_per_patch, num_draws = read_head_config(head_part(**given, diff_batch_mul=4))
    assert (tokens_per_patch, num_draws) == (16, 4)
    assert (config.num_bits, config.condition_size, config.hidden_size) == (32, 128, 256)
    assert (config.num_hidden_layers, config.num_modulation_layers) == (4, 2)
    assert (config.timestep_shift, config.timestep_schedule) == (2.0, "uniform")
    assert (config.timestep_mean, config.timestep_std, config.hidden_act) == (0.5, 2.0, "swiglu")
    assert config.squash_output

    config, _, _ = read_head_config(head_part(P_mean=0, P_std=1))  # what published files say, and no training used
    assert (config.timestep_mean, config.timestep_std) == (-0.8, 0.8)
    config, _, num_draws = read_head_config(head_part())
    assert num_draws == 1
    assert (config.timestep_mean, config.timestep_std, config.timestep_shift) == (-0.8, 0.8, 1.0)
    assert (config.timestep_schedule, config.hidden_act) == ("logit_normal", "silu")


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"ch_cond": None, "parallel_num": None}, "vision_head_config.json lacks ch_cond, parallel_num"),
        ({"time_schedule": "cosine"}, "vision_head_config.json can't be used.*timestep_schedule"),
        ({"ch_latent": 200}, "head_dim"),
        ({"depth_adanln": 3}, "num_modulation_layers"),
        ({"parallel_num": "many"}, "vision_head_config.json can't be used"),
        ({"ch_latent": "wide"}, "vision_head_config.json can't be used"),
    ],
)
def test_bad_head_config(changed, message):
    with pytest.raises(ConversionError, match=f"(?s){message}"):
        read_head_config(head_part(**changed))


def vocabulary(sizes=3, queries=3):
    names = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    names += [f"<|res_{n + 1}|>" for n in range(sizes)] + [f"<|query_{n + 1}|>" for n in range(queries)]
    return {name: 100 + index for index, name in enumerate(names)}


def test_special_tokens():
    assert read_special_tokens(vocabulary(12, 15), 200, 16) == {
        "vision_start_token_id": 100,
        "vision_end_token_id": 101,
        "image_token_id": 102,
        "size_token_id": 103,
        "num_size_tokens": 12,
        "query_token_id": 115,
    }
    assert read_special_tokens(vocabulary(3, 8), 200, 4)["query_token_id"] == 106  # more queries than needed
    assert read_special_tokens(vocabulary(3, 0), 200, 1)["num_size_tokens"] == 3  # no queries, one token a patch


@pytest.mark.parametrize(
    "words, message",
    [
        (vocabulary(queries=2), r"lacks <\|query_3\|> to <\|query_3\|>"),
        (vocabulary(sizes=0), r"lacks <\|res_1\|>"),
        ({k: v for k, v in vocabulary().items() if "image" not in k}, r"lacks <\|image_pad\|>"),
        (vocabulary() | {"<|res_2|>": 150}, r"<\|res_n\|> must run from 1 upwards with ids in a row"),
        (vocabulary() | {"<|query_5|>": 150}, r"<\|query_n\|> must run from 1 upwards"),
        (vocabulary() | {"<|query_3|>": 120}, r"<\|query_n\|> must run from 1 upwards"),
        ({k: v + 100 for k, v in vocabulary().items()}, "up to id 208, the model only 200 ids"),
    ],
)
def test_bad_vocabulary(words, message):
    with pytest.raises(ConversionError, match=message):
        read_special_tokens(words, 200, 4)


def test_abbreviate():
    assert abbreviate([]) == "no tensors"
    assert abbreviate(["a", "b"]) == "a, b"
    assert abbreviate("abcd", limit=2) == "a, b, ... (4 in all)"


def test_read_from_the_golden_folder():
    published = find_published(GOLDEN / "t2i_4x")
    config, tokens_per_patch, _ = read_head_config(published.head)
    assert (config.timestep_mean, config.timestep_std, tokens_per_patch) == (-0.8, 0.8, 4)
