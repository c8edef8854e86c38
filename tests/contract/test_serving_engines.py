"""What the transformers backends of vLLM 0.33 and SGLang 0.5.23 ask of a model and its processor, asked without them
(docs/vllm.md)."""

import re

import pytest
import torch
from accelerate import init_empty_weights
from PIL import Image
from tiny_models import build_tiny_mllm, build_tiny_processor
from torch.nn import functional as F
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoProcessor, PreTrainedConfig, Qwen3Config

from uniwetok_hf import UniWeTokForCausalLM, UniWeTokMLLMModel, UniWeTokModel, UniWeTokProcessor


SIDES = [(64, 96), (64, 64)]  # (height, width) of the pictures; they differ, so that the processor pads


@pytest.fixture
def calls():
    """Calls of an attention that is registered as "engine" meanwhile, and is causal whatever the mask, as vLLM's."""
    calls = []

    def attend(module, query, key, value, attention_mask, scaling=None, **kwargs):
        calls.append((module, attention_mask, scaling, kwargs))
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return attended.transpose(1, 2), None

    AttentionInterface.register("engine", attend)
    yield calls
    del AttentionInterface._global_mapping["engine"]


def built_by_an_engine(config: PreTrainedConfig, **options) -> UniWeTokMLLMModel:
    """The model without heads, whose language model attends by the engine."""
    config.get_text_config()._attn_implementation = "engine"
    return AutoModel.from_config(config, **options)


def test_every_attention_of_the_language_model_is_the_engines(calls):
    trained = build_tiny_mllm()
    assert type(trained).is_backend_compatible() and UniWeTokMLLMModel.is_backend_compatible()
    model = built_by_an_engine(AutoConfig.for_model(**trained.config.to_dict()))
    model.load_state_dict(trained.model.state_dict())
    input_ids = torch.arange(12)[None]
    inputs = {
        "inputs_embeds": model.get_input_embeddings()(input_ids),
        "position_ids": torch.arange(12)[None],
        "use_cache": False,
        "return_dict": False,
    }
    with torch.no_grad():
        hidden_states = model(**inputs, engine_state="x")[0]
        wanted = trained.model(**inputs)[0]
    assert torch.allclose(hidden_states, wanted, atol=1e-5)
    layers = [module.layer_idx for module, *_ in calls]
    assert layers == list(range(trained.config.text_config.num_hidden_layers))
    for module, mask, scaling, kwargs in calls:
        assert mask is None and scaling == module.scaling and kwargs["engine_state"] == "x"
        assert module.is_causal
    # The picture's own attention is full, and stays what it was.
    calls.clear()
    model.get_image_features(torch.zeros(1, 3, 64, 64))
    assert not calls


@pytest.mark.usefixtures("calls")
def test_patches_need_more_than_a_causal_attention():
    config = build_tiny_mllm(patch_size=2).config
    with pytest.raises(ValueError, match="`patch_size`=2 .* engine has only causal masks"):
        built_by_an_engine(config)


@pytest.mark.usefixtures("calls")
def test_weights_have_the_names_of_the_model_without_heads():
    """Engines build the model without memory, and read the checkpoint themselves; a name that nobody takes is an
    error."""
    trained = build_tiny_mllm()
    with init_empty_weights(include_buffers=False):
        model = built_by_an_engine(trained.config)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {buffer.device.type for buffer in model.buffers()} <= {"cpu"}
    ignored = re.compile("|".join(model._keys_to_ignore_on_load_unexpected))
    saved = [name for name in trained.state_dict() if not ignored.search(name)]
    wanted = {f"{model.base_model_prefix}.{name}" for name in model.state_dict()}
    assert set(saved) == wanted | {"lm_head.weight"}


def test_weights_that_nobody_takes_are_reported(tmp_path):
    """Those of the language model were not: the image tokenizer passes over them in a checkpoint of the whole."""
    model = build_tiny_mllm()
    model.save_pretrained(tmp_path)
    vision = {"vision_config": model.config.vision_config, "head_config": model.config.head_config}
    text = Qwen3Config(**model.config.text_config.to_dict() | {"num_hidden_layers": 1, "layer_types": None})
    config = type(model.config)(**model.config.to_dict() | {"text_config": text} | vision)
    lost = {name for name in model.state_dict() if name.startswith("model.language_model.layers.1.")}
    for model_class, one, reported in (
        (UniWeTokForCausalLM, config, lost),
        (UniWeTokMLLMModel, config, lost | {"lm_head.weight"}),
        (UniWeTokModel, model.config.vision_config, set()),
    ):
        _, report = model_class.from_pretrained(tmp_path, config=one, output_loading_info=True)
        assert set(report["unexpected_keys"]) == reported and not report["missing_keys"], model_class


def test_the_parts_that_engines_look_for():
    model = build_tiny_mllm().model
    assert model.get_encoder(modality="image") is model.vision_model
    assert model.get_decoder() is model.language_model


@pytest.mark.parametrize("count", [1, 2])
def test_pictures_find_their_places(count):
    """As vLLM does it: pictures are processed with a text of placeholders alone; the tokens of a prompt's placeholder
    are replaced by those of the processor's replacement, in which the most frequent one stands for the features."""
    model, processor = build_tiny_mllm().model, build_tiny_processor()
    images = [Image.new("RGB", (width, height), "red") for height, width in SIDES[:count]]
    text = processor.image_start_token + processor.image_token + processor.image_end_token
    inputs = processor(text=text * count, images=images, return_text_replacement_offsets=True)
    counted = processor._get_num_multimodal_tokens(image_sizes=SIDES[:count])
    assert counted["num_image_patches"] == [1] * count == [1] * len(inputs["pixel_values"])
    replacements = [entry["replacement"] for entry in inputs["text_replacement_offsets"][0]]
    ids = [torch.tensor(processor.tokenizer.encode(text, add_special_tokens=False)) for text in replacements]
    assert [int(one.mode().values) for one in ids] == [model.config.image_token_id] * count
    num_placeholders = [int((one == model.config.image_token_id).sum()) for one in ids]
    assert num_placeholders == counted["num_image_tokens"]

    sizes = inputs["image_sizes"] if count > 1 else torch.tensor(SIDES[:1])
    with torch.no_grad():  # all that the processor returned goes in, picture by picture without its padding
        features = [
            model.get_image_features(
                pixel_values[None, :, :height, :width], image_is_target=torch.tensor([False]), return_dict=True
            ).pooler_output
            for pixel_values, (height, width) in zip(inputs["pixel_values"], sizes.tolist(), strict=True)
        ]
        together = model.get_image_features(
            inputs["pixel_values"], image_sizes=inputs.get("image_sizes"), return_dict=True
        ).pooler_output
    for [alone], one, num in zip(features, together, num_placeholders, strict=True):
        assert alone.shape == (num, model.config.text_config.hidden_size)
        assert torch.allclose(alone, one, atol=1e-5)


def test_a_picture_that_no_prompt_can_hold_is_not_counted():
    """vLLM asks about the largest picture at its start: without a `size` there is none."""
    processor = build_tiny_processor()
    with pytest.raises(ValueError, match="`height` must be a multiple of 32 from 32 to 512 pixels"):
        processor._get_num_multimodal_tokens(image_sizes=([10_000, 10_000],))
    size = {"longest_edge": 256}
    assert processor._get_num_multimodal_tokens(image_sizes=([10_000, 10_000],), size=size)["num_image_tokens"] == [64]


def test_one_folder_holds_model_and_processor(tmp_path):
    model, processor = build_tiny_mllm(), build_tiny_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is UniWeTokMLLMModel
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is UniWeTokProcessor and loaded.image_start_token == "<|vision_start|>"
