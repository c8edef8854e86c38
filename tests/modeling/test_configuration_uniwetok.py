import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError

from uniwetok_hf.modeling.configuration_uniwetok import UniWeTokConfig


def test_defaults_are_the_papers():
    config = UniWeTokConfig()
    assert config.level_channels == [128, 128, 256, 256, 512, 1024]
    assert (config.hidden_size, config.intermediate_size, config.stride) == (1024, 2816, 32)
    assert (config.num_bits, config.bits_per_group, config.num_hidden_layers) == (128, 8, 16)
    assert config.model_type == "uniwetok"


def test_stride_follows_the_number_of_levels(make_config):
    assert make_config(channel_multipliers=[1, 2]).stride == 2
    assert make_config(channel_multipliers=[1, 1, 1, 2, 2]).stride == 16


def test_intermediate_size_is_kept_when_given(make_config):
    assert make_config(intermediate_size=24).intermediate_size == 24
    assert make_config(intermediate_size=None).intermediate_size == 256


def test_convolutional_has_no_attention(make_config):
    config = make_config(architecture="convolutional", channel_multipliers=[2, 2, 4])
    assert config.num_hidden_layers == 0
    assert config.level_channels == [16, 16, 32]


@pytest.mark.parametrize("architecture", ["hybrid", "convolutional"])
def test_saved_and_loaded(make_config, tmp_path, architecture):
    fields = {"num_bits": 24, "bits_per_group": 4, "num_res_blocks": 3, "rope_theta": 100, "decoder_noise": False}
    config = make_config(architecture=architecture, channel_multipliers=(1, 2, 2), **fields)
    config.save_pretrained(tmp_path)
    loaded = UniWeTokConfig.from_pretrained(tmp_path)
    assert loaded.channel_multipliers == [1, 2, 2]
    assert loaded.num_hidden_layers == (2 if architecture == "hybrid" else 0)
    assert {name: getattr(loaded, name) for name in fields} == fields
    assert loaded.to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize(
    "field, fields",
    [
        ("num_bits", {"num_bits": 12, "bits_per_group": 4}),
        ("bits_per_group", {"num_bits": 16, "bits_per_group": 6}),
        ("channel_multipliers", {"channel_multipliers": [1]}),
        ("channel_multipliers", {"channel_multipliers": []}),
        ("channel_multipliers", {"channel_multipliers": [2, 2]}),
        ("num_norm_groups", {"num_norm_groups": 3}),
        ("num_norm_groups", {"num_norm_groups": 16}),
        ("num_attention_heads", {"num_attention_heads": 3}),
        ("num_attention_heads", {"num_attention_heads": 8}),
    ],
)
def test_sizes_that_do_not_fit_name_their_field(make_config, field, fields):
    with pytest.raises(ValueError, match=f"`{field}`"):
        make_config(**fields)


@pytest.mark.parametrize(
    "field, value",
    [("architecture", "transformer"), ("num_bits", "16"), ("channel_multipliers", 3), ("decoder_noise", "yes")],
)
def test_wrong_types_name_their_field(make_config, field, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=f"'{field}'"):
        make_config(**{field: value})


@pytest.mark.parametrize(
    "field",
    ["num_bits", "bits_per_group", "base_channels", "num_norm_groups", "num_attention_heads", "num_res_blocks"],
)
def test_zero_names_its_field(make_config, field):
    with pytest.raises(ValueError, match=f"`{field}`"):
        make_config(**{field: 0})


@pytest.mark.parametrize("field, value", [("num_hidden_layers", -1), ("num_register_tokens", -1)])
def test_negative_counts_name_their_field(make_config, field, value):
    with pytest.raises(ValueError, match=f"`{field}` must not be negative, got -1"):
        make_config(**{field: value})


def test_multipliers_are_positive(make_config):
    with pytest.raises(ValueError, match=r"`channel_multipliers` must be 1 or more each, got \[1, 0, 2\]"):
        make_config(channel_multipliers=[1, 0, 2])


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), 10**400])
def test_rope_theta_is_a_number_of_float32(make_config, value):
    with pytest.raises(ValueError, match="`rope_theta`"):
        make_config(rope_theta=value)
