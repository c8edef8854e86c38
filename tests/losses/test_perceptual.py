"""Perceptual losses on tiny backbones. The VGG16 of LPIPS is compared with torchvision's layout in
tests/conversion/test_lpips.py."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    AutoBackbone,
    AutoModel,
    BertConfig,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ConvNextConfig,
    Dinov2Config,
    ResNetConfig,
    ResNetForImageClassification,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
)

from uniwetok_hf.losses.perceptual import LPIPS, PerceptualLoss


VIT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {**VIT, "vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def resnet(out_indices=(1, 3)):
    return AutoBackbone.from_config(ResNetConfig(**RESNET, out_indices=list(out_indices)))


def dual_config(config_class):
    return config_class(vision_config=VIT, text_config=TEXT)


def by_hand(first, second):
    """Distance [B] of two lists of features, channels second."""
    total = 0
    for one, other in zip(first, second, strict=True):
        one, other = (part.double() / part.double().square().sum(1, keepdim=True).sqrt() for part in (one, other))
        total = total + (one - other).square().sum(1).flatten(1).mean(1)
    return total


def normalised(pixels, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)):
    return ((pixels + 1) / 2 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def test_feature_maps_of_a_backbone(make_pictures):
    backbone = resnet()
    sample, pictures = make_pictures(2, 3, 48, 32).cpu(), make_pictures(2, 3, 48, 32, seed=1).cpu()
    loss = PerceptualLoss(backbone, image_mean=MEAN, image_std=STD)
    maps = [backbone(normalised(pixels, MEAN, STD)).feature_maps for pixels in (sample, pictures)]
    assert [tuple(values.shape) for values in maps[0]] == [(2, 8, 12, 8), (2, 16, 3, 2)]  # the pictures' own size
    wanted = by_hand(*maps)
    distances = loss.distances(sample, pictures)
    torch.testing.assert_close(distances.double(), wanted, atol=1e-6, rtol=1e-5)
    assert loss(sample, pictures).item() == pytest.approx(wanted.mean().item(), rel=1e-5)
    assert not loss.distances(sample, sample).any() and distances.min() > 0.01
    last = PerceptualLoss(backbone, layers=[-2]).distances(sample, pictures)
    maps = [backbone(normalised(pixels)).feature_maps[1:] for pixels in (sample, pictures)]
    torch.testing.assert_close(last.double(), by_hand(*maps), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("config_class", [SiglipConfig, CLIPConfig])
def test_hidden_states_of_the_vision_tower_of_a_dual_encoder(config_class, make_pictures):
    model = AutoModel.from_config(dual_config(config_class)).eval()
    sample, pictures = make_pictures(2, 3, 48, 32).cpu(), make_pictures(2, 3, 48, 32, seed=1).cpu()
    loss = PerceptualLoss(model, layers=[1, -1])
    assert not any("text" in name for name, _ in loss.named_parameters())
    maps = []
    for pixels in (sample, pictures):
        pixels = F.interpolate(pixels, size=(32, 32), mode="bicubic", antialias=True)
        states = model.vision_model(normalised(pixels), output_hidden_states=True).hidden_states
        maps.append([states[number].transpose(1, 2) for number in (1, 6)])  # [B, channels, tokens]
    torch.testing.assert_close(loss.distances(sample, pictures).double(), by_hand(*maps), atol=1e-6, rtol=1e-5)


def test_layers_are_evenly_spread_by_default(make_pictures):
    model = AutoModel.from_config(ViTConfig(**VIT))
    sample, pictures = make_pictures(1, 3, 32, 32).cpu(), make_pictures(1, 3, 32, 32, seed=1).cpu()
    chosen = PerceptualLoss(model, layers=[2, 3, 4, 6]).distances(sample, pictures)
    assert torch.equal(PerceptualLoss(model)(sample, pictures), chosen[0])
    with pytest.raises(ValueError, match=r"`layers` must be some of 0, 1, 2, 3, 4, 5, 6, got \[2, 7\]"):
        PerceptualLoss(model, layers=[2, 7])(sample, pictures)
    with pytest.raises(ValueError, match=r"`layers` must be some of 1, 3, got \[2\]"):
        PerceptualLoss(resnet(), layers=[2])(sample, pictures)


def test_sizes_of_pictures(make_pictures):
    """Only learned positions need a size of their own; DINOv2 interpolates its own as a backbone."""
    pictures = make_pictures(1, 3, 48, 80).cpu()
    vit = AutoModel.from_config(ViTConfig(**VIT))
    backbone = AutoBackbone.from_config(Dinov2Config(**VIT, out_indices=[3, 6]))
    shapes = {
        tuple(loss.features(pictures)[0].shape[1:])
        for loss in (PerceptualLoss(vit), PerceptualLoss(backbone), PerceptualLoss(backbone, image_size=64))
    }
    assert shapes == {(16, 17), (16, 6, 10), (16, 8, 8)}


def test_models_without_pictures_are_refused():
    with pytest.raises(ValueError, match="`model` must take pictures, but BertModel takes input_ids"):
        PerceptualLoss(AutoModel.from_config(BertConfig(**TEXT)))
    with pytest.raises(ValueError, match="`model`: the config of Siglip2VisionModel names no `image_size`"):
        PerceptualLoss(AutoModel.from_config(Siglip2VisionConfig(**{**VIT, "image_size": None})))


def losses():
    return {"backbone": PerceptualLoss(resnet()), "vit": PerceptualLoss(AutoModel.from_config(ViTConfig(**VIT)))} | {
        name: tiny_lpips(blurs) for name, blurs in (("lpips", False), ("blurred", True))
    }


def tiny_lpips(blurs=False):
    torch.manual_seed(0)
    loss = LPIPS([4, 4, 6, 6, 8, 8, 8, 5, 5, 5, 7, 7, 7], blurs)
    for conv in loss.convs:  # keeps the size of the features up to the last layer
        torch.nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    for head in loss.heads:
        head.data.uniform_(0, 1)
    return loss


@pytest.mark.parametrize("name", ["backbone", "vit", "lpips", "blurred"])
def test_gradients_reach_the_sample_alone(name, device, make_pictures):
    loss = losses()[name].to(device)
    sample, pictures = (make_pictures(2, 3, 32, 32, seed=seed).requires_grad_() for seed in range(2))
    value = loss(sample, pictures)
    value.backward()
    assert sample.grad.isfinite().all() and sample.grad.any()
    assert pictures.grad is None
    assert all(not weight.requires_grad and weight.grad is None for weight in loss.parameters())
    direction = sample.grad / sample.grad.norm()
    with torch.no_grad():  # the gradient is the slope
        slope = (loss(sample + 0.002 * direction, pictures) - loss(sample - 0.002 * direction, pictures)) / 0.004
    assert slope.item() == pytest.approx(sample.grad.norm().item(), rel=0.1)


def test_always_in_eval_mode(make_pictures):
    loss = PerceptualLoss(resnet())
    sample, pictures = make_pictures(2, 3, 32, 32).cpu(), make_pictures(2, 3, 32, 32, seed=1).cpu()
    before = loss(sample, pictures)
    parent = torch.nn.ModuleList([loss]).train()
    assert parent.training and not any(module.training for module in loss.modules())
    assert torch.equal(loss(sample, pictures), before)  # batch norms did not move


@pytest.mark.parametrize("name", ["backbone", "vit", "lpips", "blurred"])
def test_bfloat16_autocast(name, device, make_pictures):
    loss = losses()[name].to(device)
    sample, pictures = make_pictures(2, 3, 32, 32).requires_grad_(), make_pictures(2, 3, 32, 32, seed=1)
    wanted = loss.distances(sample, pictures)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        distances = loss.distances(sample, pictures)
    assert distances.dtype == torch.float32 and not torch.equal(distances, wanted)
    torch.testing.assert_close(distances, wanted, rtol=0.05, atol=1e-3)
    gradients = [torch.autograd.grad(value.sum(), sample)[0].flatten() for value in (wanted, distances)]
    assert F.cosine_similarity(*gradients, dim=0) > 0.95


def test_features_that_are_zero_give_no_nan(make_pictures):
    loss = tiny_lpips()
    for conv in loss.convs[-3:]:
        conv.bias.fill_(-100)
    sample, pictures = make_pictures(1, 3, 32, 32).cpu().requires_grad_(), make_pictures(1, 3, 32, 32, seed=1).cpu()
    assert not loss.features(pictures)[-1].any()
    loss(sample, pictures).backward()
    assert sample.grad.isfinite().all() and sample.grad.any()


@pytest.mark.parametrize("blurs, least", [(False, 16), (True, 18)])
def test_sides_of_pictures_for_lpips(blurs, least, make_pictures):
    loss = tiny_lpips(blurs)
    assert loss.distances(*make_pictures(2, 1, 3, least, 40).cpu()).isfinite().all()
    with pytest.raises(
        ValueError, match=f"`pixel_values` must have sides of at least {least} pixels, got 40x{least - 1}"
    ):
        loss(*torch.zeros(2, 1, 3, 40, least - 1))


def test_pictures_are_not_broadcast():
    with pytest.raises(ValueError, match="`sample` must be shaped like `pixel_values`"):
        tiny_lpips()(torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32))


class TestFromPretrained:
    def test_backbone_from_a_classifier(self, tmp_path, make_pictures):
        model = ResNetForImageClassification(ResNetConfig(**RESNET)).eval()
        model.save_pretrained(tmp_path)
        CLIPImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
        loss = PerceptualLoss.from_pretrained(str(tmp_path))
        pictures = make_pictures(1, 3, 48, 32).cpu()
        states = model.resnet(normalised(pictures, MEAN, STD), output_hidden_states=True).hidden_states
        found = loss.features((pictures - loss.shift) / loss.scale)
        assert len(found) == 4
        for one, other in zip(found, states[1:], strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        chosen = PerceptualLoss.from_pretrained(str(tmp_path), layers=[-1, 2])
        assert chosen.model.out_indices == [2, 4]
        with pytest.raises(ValueError, match="`layers` must be some of 0, 1, 2, 3, 4, got"):
            PerceptualLoss.from_pretrained(str(tmp_path), layers=[5])

    def test_dual_encoder(self, tmp_path, make_pictures):
        CLIPModel(dual_config(CLIPConfig)).half().save_pretrained(tmp_path)
        CLIPImageProcessor(do_normalize=False).save_pretrained(tmp_path)
        loss = PerceptualLoss.from_pretrained(tmp_path, layers=[0, 5], image_size=32)
        assert loss.model.dtype == torch.float32 and loss.layers == [0, 5]
        assert loss.shift.flatten().tolist() == [-1] * 3 and loss.scale.flatten().tolist() == [2] * 3
        assert [values.shape for values in loss.features(make_pictures(1, 3, 64, 64).cpu())] == [(1, 16, 17)] * 2

    def test_without_an_image_processor(self, tmp_path):
        SiglipModel(dual_config(SiglipConfig)).save_pretrained(tmp_path)
        loss = PerceptualLoss.from_pretrained(tmp_path)
        assert not loss.shift.any() and loss.scale.flatten().tolist() == [1] * 3

    def test_norms_behind_the_stages_may_be_new(self, tmp_path, make_pictures):
        AutoModel.from_config(
            ConvNextConfig(hidden_sizes=[4, 6, 8, 10], depths=[1, 1, 1, 1], num_stages=4)
        ).save_pretrained(tmp_path)
        loss = PerceptualLoss.from_pretrained(tmp_path)
        assert [values.shape[1] for values in loss.features(make_pictures(1, 3, 64, 32).cpu())] == [4, 6, 8, 10]

    def test_missing_weights_are_refused(self, tmp_path):
        ViTForImageClassification(ViTConfig(**VIT)).save_pretrained(tmp_path)
        PerceptualLoss.from_pretrained(tmp_path)  # has no pooler, and needs none
        weights = load_file(tmp_path / "model.safetensors")
        gone = next(name for name in weights if ".3." in name)
        del weights[gone]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match="`name_or_path`: .* has no weights for .*3"):
            PerceptualLoss.from_pretrained(tmp_path)
