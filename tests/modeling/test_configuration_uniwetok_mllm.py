import json

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import LlamaConfig, Qwen3Config

from uniwetok_hf import UniWeTokConfig, UniWeTokHeadConfig, UniWeTokMLLMConfig


SMALL_TEXT = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96}


def test_defaults_are_the_published_models():
    config = UniWeTokMLLMConfig()
    assert isinstance(config.text_config, Qwen3Config)
    assert isinstance(config.vision_config, UniWeTokConfig)
    assert isinstance(config.head_config, UniWeTokHeadConfig)
    assert (config.text_loss_weight, config.image_loss_weight, config.bit_flip_probability) == (0.01, 1.0, 0.1)
    # Qwen3's vocabulary has 151669 tokens; the sizes follow, then the queries (docs/method.md 3.1).
    assert (config.size_token_id, config.num_size_tokens, config.query_token_id) == (151669, 128, 151669 + 128)
    head = config.head_config
    assert (head.timestep_mean, head.timestep_std, head.timestep_shift) == (-0.8, 0.8, 1.0)
    assert (head.head_dim, head.num_modulation_layers, head.hidden_act) == (128, 2, "swiglu")


def test_head_follows_the_other_parts_when_not_given():
    config = UniWeTokMLLMConfig(text_config=Qwen3Config(hidden_size=64), vision_config=UniWeTokConfig(num_bits=32))
    assert (config.head_config.condition_size, config.head_config.num_bits) == (64, 32)


@pytest.mark.parametrize("field, value", [("num_bits", 64), ("condition_size", 32)])
def test_head_that_does_not_fit_is_refused(field, value):
    head = {"num_bits": 128, "condition_size": 64} | {field: value}
    with pytest.raises(ValueError, match=f"head_config.{field}"):
        UniWeTokMLLMConfig(text_config=Qwen3Config(hidden_size=64), head_config=head)


@pytest.mark.parametrize("patch_size, tokens", [(1, 1), (2, 4), (4, 16)])
def test_tokens_per_patch(patch_size, tokens):
    assert UniWeTokMLLMConfig(patch_size=patch_size).tokens_per_patch == tokens


def test_patches_have_a_side():
    with pytest.raises(ValueError, match="patch_size"):
        UniWeTokMLLMConfig(patch_size=0)


def test_pictures_have_a_size():
    with pytest.raises(ValueError, match="`num_size_tokens` must be 1 or more, got 0"):
        UniWeTokMLLMConfig(num_size_tokens=0)


def test_sinusoids_need_a_hidden_size_of_a_multiple_of_four():
    with pytest.raises(ValueError, match="hidden_size"):
        UniWeTokMLLMConfig(text_config=Qwen3Config(hidden_size=66))


@pytest.mark.parametrize("fields", [{"patch_size": "2"}, {"text_loss_weight": "big"}, {"num_size_tokens": 1.5}])
def test_wrong_types_are_refused(fields):
    with pytest.raises(StrictDataclassFieldValidationError):
        UniWeTokMLLMConfig(**fields)


def test_parts_may_be_dicts_and_the_text_model_any():
    config = UniWeTokMLLMConfig(
        text_config={"model_type": "llama"} | SMALL_TEXT,
        vision_config={"num_bits": 16, "num_hidden_layers": 0},
        head_config={"num_bits": 16, "condition_size": 64, "hidden_size": 32, "head_dim": 16},
    )
    assert isinstance(config.text_config, LlamaConfig)
    assert config.text_config.hidden_size == 64
    assert config.vision_config.num_bits == 16
    assert config.head_config.num_attention_heads == 2


def test_text_config_is_the_one_generation_reads():
    config = UniWeTokMLLMConfig(text_config=Qwen3Config(**SMALL_TEXT))
    assert config.get_text_config() is config.text_config


def test_saved_and_loaded(tmp_path):
    config = UniWeTokMLLMConfig(
        text_config=LlamaConfig(**SMALL_TEXT),
        vision_config=UniWeTokConfig(num_bits=64, architecture="convolutional"),
        head_config={"num_bits": 64, "condition_size": 64, "timestep_shift": 2.0, "timestep_schedule": "uniform"},
        patch_size=4,
        bit_flip_probability=0.05,
        tie_word_embeddings=True,
    )
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "uniwetok_mllm"
    assert saved["text_config"]["model_type"] == "llama"
    loaded = UniWeTokMLLMConfig.from_pretrained(tmp_path)
    assert isinstance(loaded.text_config, LlamaConfig)
    for name in ("patch_size", "bit_flip_probability", "tie_word_embeddings", "size_token_id", "num_diffusion_draws"):
        assert getattr(loaded, name) == getattr(config, name)
    for part in ("text_config", "vision_config", "head_config"):
        assert getattr(loaded, part).to_dict() == getattr(config, part).to_dict()


def test_parts_load_from_the_whole(tmp_path):
    """What makes `UniWeTokModel.from_pretrained(folder, subfolder="mllm")` possible."""
    UniWeTokMLLMConfig(
        text_config=Qwen3Config(hidden_size=64),
        vision_config=UniWeTokConfig(num_bits=64, num_res_blocks=3),
        head_config={"num_bits": 64, "condition_size": 64, "num_hidden_layers": 4},
    ).save_pretrained(tmp_path)
    assert UniWeTokConfig.from_pretrained(tmp_path).num_res_blocks == 3
    assert UniWeTokHeadConfig.from_pretrained(tmp_path).num_hidden_layers == 4


def test_head_feed_forward_is_half_as_wide_again():
    assert UniWeTokHeadConfig(hidden_size=256).intermediate_size == 384
    assert UniWeTokHeadConfig(hidden_size=256, intermediate_size=100).intermediate_size == 100


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"hidden_size": 100, "head_dim": 64}, "head_dim"),
        ({"num_hidden_layers": 5, "num_modulation_layers": 2}, "num_modulation_layers"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"timestep_schedule": "cosine"}, "timestep_schedule"),
    ],
)
def test_head_sizes_are_checked(fields, named):
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=named):
        UniWeTokHeadConfig(**fields)


def test_a_config_of_another_type_is_refused(tmp_path):
    UniWeTokConfig().save_pretrained(tmp_path / "vision")
    Qwen3Config().save_pretrained(tmp_path / "text")
    for config_class, folder in (
        (UniWeTokMLLMConfig, "vision"),
        (UniWeTokConfig, "text"),
        (UniWeTokHeadConfig, "text"),
    ):
        with pytest.raises(ValueError, match=f"of a model of the type .*, {config_class.__name__} reads"):
            config_class.from_pretrained(tmp_path / folder)
    UniWeTokMLLMConfig().save_pretrained(tmp_path / "mllm")
    assert UniWeTokConfig.from_pretrained(tmp_path / "mllm").num_bits == 128  # a part of it is found


def test_positions_that_are_not_there():
    config = UniWeTokMLLMConfig(text_config={"model_type": "qwen3", "max_position_embeddings": 20})
    config.check_positions(15, 5)
    with pytest.raises(ValueError, match="`prompt`: 16 tokens, and 5 that follow them, are more than the 20 that"):
        config.check_positions(16, 5)
    with pytest.raises(ValueError, match="`text`: 21 tokens are more than the 20 that"):
        config.check_positions(21, 0, "text")


def test_the_map_of_code_is_each_configs_own():
    """transformers writes into it for classes that are saved with their code; an empty one is not saved."""
    config, other = UniWeTokMLLMConfig(), UniWeTokMLLMConfig()
    assert config.auto_map == config.vision_config.auto_map == {}
    assert "auto_map" not in config.to_json_string() and config == UniWeTokMLLMConfig()
    config.auto_map["AutoModel"] = "code.Model"
    assert config.to_dict()["auto_map"] == config.to_diff_dict()["auto_map"] == {"AutoModel": "code.Model"}
    assert other.auto_map == UniWeTokMLLMConfig().auto_map == {}
    assert UniWeTokMLLMConfig.from_dict(config.to_dict()).auto_map == {"AutoModel": "code.Model"}
