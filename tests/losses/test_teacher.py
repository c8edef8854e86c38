import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import build_siglip
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    GemmaTokenizer,
    ResNetConfig,
    ResNetModel,
    Siglip2Config,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from uniwetok_hf.losses.teacher import Teacher
from uniwetok_hf.provenance import weight_digests


SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**SMALL, "image_size": 32, "patch_size": 16}


@pytest.fixture
def siglip(tmp_path):
    return build_siglip(tmp_path / "siglip", size=32)


def save(model_class, config, folder):
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    return folder


def test_siglip(siglip, make_pictures):
    teacher = Teacher.from_pretrained(siglip)
    assert (teacher.image_size, teacher.embedding_size) == ((32, 32), 16)
    assert (teacher.name, teacher.pooling) == (siglip, "image features")
    pixel_values = make_pictures(2, 3, 32, 32).cpu()
    model = SiglipModel.from_pretrained(siglip)
    embeddings = teacher.embed_pictures(pixel_values)
    torch.testing.assert_close(embeddings, model.get_image_features(pixel_values).pooler_output)  # [-1, 1] is its own
    assert embeddings.dtype == torch.float32 and embeddings.shape == (2, 16)


@pytest.mark.parametrize("size", [(32, 32), (57, 40), (16, 48)])
def test_pictures_are_prepared_as_its_image_processor_does(siglip, size):
    """Both sides resized, bicubic with antialiasing; Pillow's works in 8 bits."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    pixels = np.stack([rows * 4, columns * 3, 128 + 100 * np.sin(rows / 5)], axis=-1).clip(0, 255).astype(np.uint8)
    teacher = Teacher.from_pretrained(siglip)
    pixel_values = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    wanted = SiglipImageProcessorPil.from_pretrained(siglip)(Image.fromarray(pixels), return_tensors="pt")
    torch.testing.assert_close(teacher.prepare(pixel_values), wanted["pixel_values"], atol=2 / 127.5, rtol=0)


def test_bicubic_overshoot_is_clamped(siglip):
    teacher = Teacher.from_pretrained(siglip)
    edge = torch.full((1, 3, 16, 16), -1.0)
    edge[..., 8:] = 1
    assert F.interpolate(edge, (32, 32), mode="bicubic", antialias=True).max() > 1.01
    assert teacher.prepare(edge).abs().max() <= 1


def test_its_own_normalisation_and_size(siglip, make_pictures):
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 0.2], "size": {"height": 16, "width": 32}}
    path = f"{siglip}/preprocessor_config.json"
    with open(path) as file:
        saved = json.load(file)
    with open(path, "w") as file:
        json.dump(saved | processor, file)
    model = SiglipModel.from_pretrained(siglip)
    with pytest.raises(RuntimeError):  # a model with positions for 32 x 32 can't be shown 16 x 32
        Teacher.from_pretrained(siglip)
    with open(path, "w") as file:
        json.dump(saved | processor | {"size": {"height": 32, "width": 32}}, file)
    teacher = Teacher.from_pretrained(siglip)
    pixel_values = make_pictures(1, 3, 32, 32).cpu()
    normalised = torch.stack(
        [
            ((pixel_values[0, c] + 1) / 2 - mean) / std
            for c, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 0.2)])
        ]
    )
    torch.testing.assert_close(
        teacher.embed_pictures(pixel_values)[0], model.get_image_features(normalised[None]).pooler_output[0]
    )
    with open(path, "w") as file:
        json.dump(saved | {"do_normalize": False}, file)
    plain = Teacher.from_pretrained(siglip)
    torch.testing.assert_close(plain.prepare(pixel_values), (pixel_values + 1) / 2)


def test_without_an_image_processor_halves_are_taken(siglip, tmp_path, make_pictures):
    pixel_values = make_pictures(1, 3, 32, 32).cpu()
    before = Teacher.from_pretrained(siglip).embed_pictures(pixel_values)
    (tmp_path / "siglip" / "preprocessor_config.json").unlink()
    teacher = Teacher.from_pretrained(siglip)
    assert teacher.image_size == (32, 32)
    assert torch.equal(teacher.embed_pictures(pixel_values), before)


def test_frozen_and_always_in_eval_mode(siglip, make_pictures):
    teacher = Teacher.from_pretrained(siglip)
    part_of = torch.nn.ModuleList([teacher]).train()
    assert part_of.training and not teacher.training and not any(m.training for m in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    pixel_values = make_pictures(1, 3, 32, 32).cpu().requires_grad_()
    assert not teacher.embed_pictures(pixel_values).requires_grad


def test_under_autocast_vectors_are_float32(siglip, make_pictures, device):
    teacher = Teacher.from_pretrained(siglip).to(device)
    pixel_values = make_pictures(2, 3, 40, 24)
    single = teacher.embed_pictures(pixel_values)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        half = teacher.embed_pictures(pixel_values.bfloat16())
        assert teacher.embed_texts(["a"]).dtype == torch.float32
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, single, atol=0.1, rtol=0.1)


def test_loaded_in_half_precision(siglip, make_pictures):
    teacher = Teacher.from_pretrained(siglip, dtype=torch.bfloat16)
    assert teacher.model.dtype == torch.bfloat16
    assert teacher.embed_pictures(make_pictures(1, 3, 32, 32).cpu()).dtype == torch.float32
    assert teacher.fingerprint == Teacher.from_pretrained(siglip).fingerprint


def test_half_precision_keeps_the_directions(siglip, make_pictures):
    """Distillation compares directions. Autocast of float32 weights changes them as much."""
    pixel_values = make_pictures(8, 3, 32, 32).cpu()
    single, half = (Teacher.from_pretrained(siglip, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = single.embed_pictures(pixel_values)
    exact, rounded = single.embed_pictures(pixel_values), half.embed_pictures(pixel_values)
    assert not torch.equal(exact, rounded)
    for other in (rounded, under_autocast):
        assert F.cosine_similarity(exact, other).min() > 0.999


@pytest.mark.parametrize("model_class", [SiglipModel, CLIPModel])
def test_without_its_text_half(model_class, siglip, tmp_path, make_pictures):
    folder = siglip
    if model_class is CLIPModel:
        text = {**SMALL, "vocab_size": 300, "eos_token_id": 2}
        folder = save(CLIPModel, CLIPConfig(vision_config=VISION, text_config=text), tmp_path / "clip")
        for file in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
            (folder / file).write_text((tmp_path / "siglip" / file).read_text())
    whole, teacher = Teacher.from_pretrained(folder), Teacher.from_pretrained(folder).drop_texts()
    pixel_values = make_pictures(2, 3, 40, 40).cpu()
    assert torch.equal(teacher.embed_pictures(pixel_values), whole.embed_pictures(pixel_values))
    assert not [name for name in teacher.state_dict() if "text_" in name]
    assert len(weight_digests(teacher)) < len(teacher.digests)
    assert (teacher.digests, teacher.fingerprint) == (weight_digests(whole), whole.fingerprint)
    assert teacher.model.bfloat16() and teacher.drop_texts().fingerprint == whole.fingerprint
    with pytest.raises(ValueError, match="reads no texts"):
        teacher.embed_texts(["red apple"])


def test_a_vision_model_has_no_text_half_to_drop(tmp_path, make_pictures):
    teacher = Teacher.from_pretrained(save(ViTModel, ViTConfig(**VISION), tmp_path))
    before = teacher.embed_pictures(make_pictures(2, 3, 32, 32).cpu())
    assert torch.equal(teacher.drop_texts().embed_pictures(make_pictures(2, 3, 32, 32).cpu()), before)


def test_fingerprint_is_of_the_weights(siglip, tmp_path):
    teacher = Teacher.from_pretrained(siglip)
    before = teacher.fingerprint
    teacher.model.vision_model.encoder.layers[0].mlp.fc1.weight.data[0] *= -1
    assert teacher.fingerprint != before and len(before) == 64


def test_texts_are_padded_to_the_full_length(siglip):
    teacher = Teacher.from_pretrained(siglip)
    model, text_tokenizer = SiglipModel.from_pretrained(siglip), teacher.text_tokenizer
    short, long = "red apple", "a" * 100
    inputs = text_tokenizer([short], padding="max_length", max_length=32, return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 32)
    expected = model.get_text_features(**inputs).pooler_output
    embeddings = teacher.embed_texts([short])
    torch.testing.assert_close(embeddings, expected)
    assert embeddings.dtype == torch.float32 and not embeddings.requires_grad
    both = teacher.embed_texts([short, long])
    torch.testing.assert_close(both, torch.cat([expected, teacher.embed_texts(["a" * 32])]))  # long ones are cut


def test_clip_gives_its_projected_features(tmp_path, make_pictures):
    config = CLIPConfig(
        vision_config=VISION, text_config={**SMALL, "vocab_size": 300, "eos_token_id": 2}, projection_dim=12
    )
    folder = save(CLIPModel, config, tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    build_siglip(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((tmp_path / "other" / name).read_text())
    teacher = Teacher.from_pretrained(folder)
    assert (teacher.image_size, teacher.embedding_size) == ((32, 32), 12)
    prepared = teacher.prepare(make_pictures(2, 3, 50, 40).cpu())
    expected = CLIPModel.from_pretrained(folder).get_image_features(prepared).pooler_output
    torch.testing.assert_close(teacher.embed_pictures(make_pictures(2, 3, 50, 40).cpu()), expected)
    assert teacher.embed_texts(["a picture"]).shape == (1, 12)


def test_vision_models_give_their_pooled_output(tmp_path, make_pictures):
    pixel_values = make_pictures(2, 3, 32, 32).cpu()
    for model_class, config in ((SiglipVisionModel, SiglipVisionConfig(**VISION)), (ViTModel, ViTConfig(**VISION))):
        folder = save(model_class, config, tmp_path / model_class.__name__)
        teacher = Teacher.from_pretrained(folder)
        assert teacher.pooling == "pooled output"
        expected = model_class.from_pretrained(folder)(pixel_values).pooler_output
        torch.testing.assert_close(teacher.embed_pictures(pixel_values), expected)
        with pytest.raises(ValueError, match="reads no texts"):
            teacher.embed_texts(["red apple"])


def test_convolutional_models(tmp_path, make_pictures):
    """Their pooled output has two more axes; a processor without a crop tells the size by the shortest edge."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    folder = save(ResNetModel, config, tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 48}, do_center_crop=False, crop_size=None).save_pretrained(folder)
    teacher = Teacher.from_pretrained(folder)
    pixel_values = make_pictures(2, 3, 64, 64).cpu()
    embeddings = teacher.embed_pictures(pixel_values)
    assert embeddings.shape == (2, teacher.embedding_size) == (2, 12)
    assert teacher.image_size == (48, 48)
    teacher.pooling = "mean of hidden states"  # which is what this model pools
    torch.testing.assert_close(teacher.embed_pictures(pixel_values), embeddings)


def test_without_a_pooler_hidden_states_are_averaged(tmp_path, make_pictures):
    """A classifier's checkpoint has no pooler: the random one that transformers adds must not teach."""
    pixel_values = make_pictures(2, 3, 32, 32).cpu()
    headless = SiglipVisionConfig(**VISION, vision_use_head=False)
    for model_class, base, config in (
        (ViTForImageClassification, ViTModel, ViTConfig(**VISION)),
        (SiglipVisionModel, SiglipVisionModel, headless),
    ):
        folder = save(model_class, config, tmp_path / model_class.__name__)
        teacher = Teacher.from_pretrained(folder)
        assert teacher.pooling == "mean of hidden states"
        states = base.from_pretrained(folder)(pixel_values).last_hidden_state
        torch.testing.assert_close(teacher.embed_pictures(pixel_values), states.mean(1))
        assert teacher.embedding_size == 16


def test_naflex_is_refused_before_it_is_loaded(tmp_path):
    config = Siglip2Config(vision_config={**SMALL, "num_patches": 16}, text_config={**SMALL, "vocab_size": 300})
    config.save_pretrained(tmp_path)  # no weights there
    with pytest.raises(ValueError, match="NaFlex.*google/siglip2-so400m-patch16-384"):
        Teacher.from_pretrained(tmp_path)


def test_text_models_are_refused(tmp_path):
    folder = save(BertModel, BertConfig(**SMALL, vocab_size=50), tmp_path)
    with pytest.raises(ValueError, match="BertModel.*reads input_ids"):
        Teacher.from_pretrained(folder)


def test_missing_weights_are_refused(siglip):
    from safetensors.torch import load_file, save_file

    weights = load_file(f"{siglip}/model.safetensors")
    del weights["vision_model.post_layernorm.weight"]
    save_file(weights, f"{siglip}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights; the first is vision_model.post_layernorm.weight"):
        Teacher.from_pretrained(siglip)


def test_a_size_must_be_known(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    with pytest.raises(ValueError, match="neither an image processor nor an `image_size`"):
        Teacher.from_pretrained(save(ResNetModel, config, tmp_path))


def test_no_such_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="nothing: there is no such folder"):
        Teacher.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ValueError, match="runs/siglip/model: there is no such folder"):
        Teacher.from_pretrained("runs/siglip/model")


def test_siglip_2_reads_lower_case(siglip):
    """Its checkpoints for pictures of a fixed size are SigLIP models with the tokenizer of Gemma, which keeps case."""
    teacher = Teacher.from_pretrained(siglip)
    texts = ["a Persian cat", "a persian cat"]
    plain = teacher.embed_texts(texts)
    assert not torch.equal(plain[0], plain[1])  # the tokenizer of other models sees what it is given
    letters = [chr(code) for code in range(32, 127)]
    vocabulary = {
        name: index for index, name in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *letters])
    }
    teacher.text_tokenizer = GemmaTokenizer(vocab=vocabulary, merges=[], padding_side="right", add_bos_token=False)
    assert teacher.text_tokenizer("A").input_ids != teacher.text_tokenizer("a").input_ids
    lowered = teacher.embed_texts(texts)
    assert torch.equal(lowered[0], lowered[1]) and not torch.equal(lowered[0], teacher.embed_texts(["a dog"])[0])
