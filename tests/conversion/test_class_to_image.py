"""Conversions of class-to-image models. What the results compute is tested in tests/parity/test_c2i.py."""

import argparse
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conversion.published import GOLDEN, edit_json, edit_tensors, snapshot, to_native
from uniwetok_hf import UniWeTokClassToImagePipeline
from uniwetok_hf.conversion import ConversionError, convert_checkpoint
from uniwetok_hf.conversion.imagenet import imagenet_labels
from uniwetok_hf.conversion.keys import VISION_RULES, class_to_image_rules


@pytest.fixture(params=["c2i_1x", "c2i_4x"])
def src(request, tmp_path):
    """A copy of a golden folder, without what is not published."""
    folder = shutil.copytree(GOLDEN / request.param, tmp_path / request.param)
    for name in ("golden.json", "golden.safetensors"):
        (folder / name).unlink()
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def native(src):
    """What the result holds: (transformer, vision model)."""
    tensors = load_file(src / "model.safetensors")
    rules = class_to_image_rules("head.net.res_blocks.0.attn.wo.weight" in tensors)
    parts = (tensors, rules), (load_file(src / "ae.safetensors"), VISION_RULES)
    return [dict(pair for name, one in found.items() for pair in to_native(name, one, rule)) for found, rule in parts]


def assert_converted(out, wanted, dtype=torch.bfloat16):
    for part, tensors in zip(("transformer", "vision_model"), wanted, strict=True):
        found = load_file(out / part / "model.safetensors")
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(found[name], tensor.to(dtype)), name


def test_folder(src, out):
    wanted = native(src)
    assert convert_checkpoint(src, out) == out
    assert_converted(out, wanted)
    assert sorted(snapshot(out)) == [
        "image_processor/preprocessor_config.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/model.safetensors",
        "vision_model/config.json",
        "vision_model/model.safetensors",
    ]
    config = json.loads((out / "transformer" / "config.json").read_text())
    assert config["is_first_patch_apart"] is True
    head = config["head_config"]
    assert (head["timestep_mean"], head["timestep_std"]) == (-0.8, 0.8)  # the JSON says 0 and 1
    assert head["squash_output"] is False
    pipe = UniWeTokClassToImagePipeline.from_pretrained(out)
    assert pipe.config.default_guidance_scale == 4.0
    assert pipe.labels == {}


def pickled(src, **more) -> dict:
    """What the authors' training saves, with the image tokenizer inside."""
    averaged = load_file(src / "model.safetensors")
    averaged |= {f"vae.{name}": tensor for name, tensor in load_file(src / "ae.safetensors").items()}
    raw = {name: torch.zeros_like(tensor) for name, tensor in averaged.items()}
    args = argparse.Namespace(model="BitDance-B", P_mean=-0.8)
    return {"model": raw, "ema": averaged, "optimizer": {"state": {}}, "epochs": 800, "args": args} | more


def test_training_checkpoint(src, out, tmp_path):
    """Averaged weights, and the image tokenizer inside."""
    wanted = native(src)
    file = tmp_path / "alone" / "c2i.pt"
    file.parent.mkdir()
    torch.save(pickled(src), file)
    shutil.copyfile(src / "config.json", file.with_name("config.json"))
    convert_checkpoint(file, out, dtype="float32")
    assert_converted(out, wanted, torch.float32)


def test_a_tokenizer_of_its_own_wins(src, out):
    wanted = native(src)
    contents = pickled(src)
    contents["ema"] |= {name: tensor + 1 for name, tensor in contents["ema"].items() if name.startswith("vae.")}
    (src / "model.safetensors").unlink()
    torch.save(contents, src / "c2i.pth")
    torch.save({"state_dict": load_file(src / "ae.safetensors")}, src / "ae.ckpt")
    (src / "ae.safetensors").unlink()
    convert_checkpoint(src, out)
    assert_converted(out, wanted)


def test_community_layout(src, out, tmp_path):
    wanted = native(src)
    folder = tmp_path / "community"
    for part in ("transformer", "autoencoder"):
        (folder / part).mkdir(parents=True)
    shutil.move(src / "config.json", folder / "transformer" / "config.json")
    shutil.move(src / "model.safetensors", folder / "transformer" / "diffusion_pytorch_model.safetensors")
    shutil.move(src / "ae_config.json", folder / "autoencoder" / "config.json")
    shutil.move(src / "ae.safetensors", folder / "autoencoder" / "diffusion_pytorch_model.safetensors")
    names = {str(number): f"class {number}" for number in range(10)}
    edit_json(folder / "transformer" / "config.json", id2label=names)
    convert_checkpoint(folder, out)
    assert_converted(out, wanted)
    assert UniWeTokClassToImagePipeline.from_pretrained(out).get_label_ids("class 7") == [7]


def test_heads_that_no_file_tells(src, out):
    """Heads of 64 channels, as all published sizes have them."""
    (src / "config.json").unlink()
    with pytest.warns(UserWarning, match="No JSON tells the attention heads of model.safetensors: 1 are assumed"):
        convert_checkpoint(src, out)
    config = json.loads((out / "transformer" / "config.json").read_text())
    assert config["num_attention_heads"] == 1


def test_names_of_imagenet():
    labels = imagenet_labels()
    assert list(labels) == list(range(1000))
    assert (labels[207], labels[360], labels[0]) == ("golden retriever", "otter", "tench, Tinca tinca")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda src: (src / "ae.safetensors").unlink(),
            "without an image tokenizer, neither as vae.. in that file nor",
        ),
        (lambda src: edit_json(src / "config.json", latent_dim=16), "disagree: latent_dim is 16, not 32"),
        (lambda src: edit_json(src / "config.json", num_classes=1000), "disagree: num_classes is 1000, not 10"),
        (lambda src: edit_json(src / "config.json", id2label={"0": "a"}), "id2label must have a name for each of 10"),
        (lambda src: edit_tensors(src / "model.safetensors", "emb_norm.weight"), "it lacks emb_norm.weight"),
        (lambda src: edit_tensors(src / "model.safetensors", "norm.weight"), "model.safetensors lacks norm.weight"),
        (
            lambda src: edit_tensors(src / "model.safetensors", "head.net.res_blocks.1.w1.bias"),
            "model.safetensors lacks head.net.res_blocks.1.w1.bias",
        ),
        (
            lambda src: edit_tensors(src / "model.safetensors", **{"pos_for_diff.weight": torch.zeros(15, 64)}),
            "15 tokens .pos_for_diff.weight. and . per step .query_token. must be squares",
        ),
        (
            lambda src: edit_tensors(src / "model.safetensors", **{"proj_in.w1.weight": torch.zeros(192, 16)}),
            "disagree: latent_dim is 32, not 16",
        ),
        (lambda src: edit_tensors(src / "model.safetensors", extra=torch.zeros(1)), "unknown tensors extra"),
        (
            lambda src: edit_tensors(src / "model.safetensors", **{"cls_embedding.weight": torch.zeros(11, 250)}),
            "disagree: cls_token_num is 4, not 3",
        ),
    ],
)
def test_damaged_folders(src, out, damage, message):
    damage(src)
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(src, out)
    assert not out.exists()


def test_a_tokenizer_of_other_bits(src, out):
    shutil.copyfile(GOLDEN / "tokenizer_uniwetok" / "ae.safetensors", src / "ae.safetensors")
    shutil.copyfile(GOLDEN / "tokenizer_uniwetok" / "ae_config.json", src / "ae_config.json")
    tensors = load_file(src / "model.safetensors")
    tensors["proj_in.w1.weight"] = tensors["proj_in.w1.weight"][:, :16].clone()
    for name in (
        "head.net.input_proj.weight",
        "head.net.final_layer.linear.weight",
        "head.net.final_layer.linear.bias",
    ):
        axis = 1 if "input_proj" in name else 0
        tensors[name] = tensors[name].narrow(axis, 0, 16).clone()
    save_file(tensors, src / "model.safetensors")
    edit_json(src / "config.json", latent_dim=16)
    with pytest.raises(ConversionError, match="ae.safetensors has tokens of 32 bits, model.safetensors generates tok"):
        convert_checkpoint(src, out)
