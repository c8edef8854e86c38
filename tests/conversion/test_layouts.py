import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from tests.conversion.published import GOLDEN, edit_json, shard
from uniwetok_hf.conversion.layouts import PublishedTextToImage, PublishedVision, find_published
from uniwetok_hf.conversion.tensors import ConversionError


def test_tokenizer_folder():
    published = find_published(GOLDEN / "tokenizer_uniwetok")  # it holds golden.safetensors too
    assert isinstance(published, PublishedVision)
    assert published.vision.source.label == "ae.safetensors"
    assert published.vision.settings_label == "ae_config.json"
    assert len(published.vision.source.tensors) == 160


def test_tokenizer_file_takes_the_json_beside_it(copy_golden):
    folder = copy_golden("tokenizer_uniwetok")
    assert find_published(folder / "ae.safetensors").vision.settings["ddconfig"]["n_heads"] == 4
    (folder / "ae_config.json").unlink()
    assert find_published(folder / "ae.safetensors").vision.settings is None


def test_tokenizer_of_a_text_to_image_folder(copy_golden):
    folder = copy_golden("t2i_4x")
    assert isinstance(find_published(folder / "ae.safetensors"), PublishedVision)
    (folder / "ae_config.json").unlink()
    assert find_published(folder / "ae.safetensors").vision.settings is None  # config.json is the language model's


@pytest.mark.parametrize("name", ["weights.safetensors", "UniWeTok.ckpt"])
def test_folder_with_one_weight_file(tmp_path, name):
    (save_file if name.endswith("safetensors") else torch.save)({"a": torch.ones(2)}, tmp_path / name)
    assert find_published(tmp_path).vision.source.label == name


def test_community_tokenizer_folder(copy_golden):
    folder = copy_golden("tokenizer_bitdance")
    (folder / "ae.safetensors").rename(folder / "diffusion_pytorch_model.safetensors")
    (folder / "ae_config.json").rename(folder / "config.json")
    published = find_published(folder)
    assert published.vision.settings["gan_decoder"] is False
    assert published.vision.settings_label == "config.json"


def test_text_to_image_folder(copy_golden):
    folder = copy_golden("t2i_4x")
    published = find_published(folder)
    assert isinstance(published, PublishedTextToImage)
    assert published.language.source.label == "model.safetensors"
    assert published.head.settings["parallel_num"] == 4
    assert published.text_folder == folder
    shard(folder / "model.safetensors", 3)
    sharded = find_published(folder)
    assert sharded.language.source.label == "model.safetensors.index.json"
    assert sharded.language.source.tensors == published.language.source.tensors


def test_community_text_to_image_folder(community_golden):
    published = find_published(community_golden)
    assert isinstance(published, PublishedTextToImage)
    assert published.vision.source.label == "autoencoder/diffusion_pytorch_model.safetensors"
    assert published.vision.settings["ddconfig"]["n_heads"] == 4
    assert published.projector.settings["hidden_act"] == "gelu_pytorch_tanh"
    assert published.language_folder == community_golden / "text_encoder"
    assert published.text_folder == community_golden / "tokenizer"


@pytest.mark.parametrize(
    "missing, expected",
    [
        (["projector.safetensors"], "vision_head.safetensors, but lacks projector.safetensors."),
        (["vision_head.safetensors"], "vision_head_config.json, but lacks vision_head.safetensors."),
        (["vision_head_config.json"], "lacks vision_head_config.json."),
        (["ae.safetensors"], "lacks ae.safetensors."),
        (["model.safetensors", "config.json"], "lacks model.safetensors, config.json."),
        (["tokenizer.json", "tokenizer_config.json"], "lacks tokenizer.json."),
    ],
)
def test_missing_parts_are_named(copy_golden, missing, expected):
    folder = copy_golden("t2i_4x")
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(ConversionError) as caught:
        find_published(folder)
    assert str(caught.value).startswith("it is a text-to-image folder")
    assert str(caught.value).endswith(expected)


def test_missing_parts_of_the_community_layout_are_named(community_golden):
    shutil.rmtree(community_golden / "projector")
    shutil.rmtree(community_golden / "tokenizer")
    with pytest.raises(ConversionError, match=r"lacks projector/diffusion_pytorch_model.*, tokenizer/tokenizer\.json"):
        find_published(community_golden)


def test_what_is_nothing_published(tmp_path):
    with pytest.raises(ConversionError, match="no such file or folder"):
        find_published(tmp_path / "absent")
    with pytest.raises(ConversionError, match=r"Looked for .*ae\.safetensors.*vision_head.*; found nothing"):
        find_published(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ConversionError, match=r"found notes\.txt"):
        find_published(tmp_path)
    with pytest.raises(ConversionError, match=r"no weight file; accepted are \.safetensors"):
        find_published(tmp_path / "notes.txt")
    for name in ("one.ckpt", "two.ckpt"):
        torch.save({"a": torch.ones(1)}, tmp_path / name)
    with pytest.raises(ConversionError, match=r"several weight files \(one\.ckpt, two\.ckpt\)"):
        find_published(tmp_path)


@pytest.mark.parametrize("model_type", ["uniwetok", "uniwetok_mllm"])
def test_converted_model(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match=f"converted model already .{model_type}."):
        find_published(tmp_path)


def test_damaged_json(copy_golden):
    folder = copy_golden("t2i_4x")
    for damaged, words in (("{", "or cut off"), ("[" * 100_000, "or cut off"), ("[]", "must hold a JSON object")):
        (folder / "vision_head_config.json").write_text(damaged)
        with pytest.raises(ConversionError, match=rf"vision_head_config\.json is damaged.*{words}"):
            find_published(folder)
    edit_json(folder / "ae_config.json", ddconfig=None)
    (folder / "vision_head_config.json").write_text("{}")
    assert find_published(folder).vision.settings["ddconfig"] is None  # read later, and refused there
