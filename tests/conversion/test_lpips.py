"""LPIPS weights from torchvision's and the authors' layouts, at tiny widths."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from uniwetok_hf.conversion.lpips import convert_lpips
from uniwetok_hf.conversion.tensors import ConversionError
from uniwetok_hf.losses.perceptual import LPIPS


WIDTHS = [2, 3, 4, 3, 5, 4, 3, 4, 5, 6, 5, 4, 3]
ENDS = [1, 3, 6, 9, 12]  # of the stages, among the convolutions


def vgg16(widths=WIDTHS, halve=lambda: nn.MaxPool2d(2)):
    """The `features` of torchvision's VGG16."""
    layers, inputs = [], 3
    for index, width in enumerate(widths):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
        inputs = width
        if index in ENDS:
            layers.append(halve())
    return nn.Sequential(*layers)


def heads(widths=WIDTHS):
    return {f"lin{number}.model.1.weight": torch.rand(1, widths[end], 1, 1) for number, end in enumerate(ENDS)}


def published_distance(features, heads, sample, pictures):
    """LPIPS [B] as its authors define it, in float64."""
    features, total = features.double(), 0
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)[:, None, None]
    states = [(pixels.double() - shift) / scale for pixels in (sample, pictures)]
    number, convs = 0, -1
    for layer, following in itertools.pairwise([*features, None]):
        states = [layer(state) for state in states]
        convs += isinstance(layer, nn.Conv2d)
        if isinstance(layer, nn.ReLU) and not isinstance(following, nn.Conv2d):  # the last of a stage
            assert convs == ENDS[number]
            one, other = (state / state.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12) for state in states)
            weight = heads[f"lin{number}.model.1.weight"].double()
            total = total + F.conv2d((one - other).square(), weight).mean((1, 2, 3))
            number += 1
    return total


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def pictures(make_pictures):
    return make_pictures(2, 2, 3, 40, 33).cpu()


def test_torchvision_and_lpips_files(tmp_path, pictures):
    features, lins = vgg16(), heads()
    trunk = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(trunk | {"classifier.0.weight": torch.zeros(4, 4)}, tmp_path / "vgg16.pth")
    torch.save(lins, tmp_path / "vgg.pth")
    out = convert_lpips(tmp_path / "vgg16.pth", tmp_path / "vgg.pth", tmp_path / "lpips.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"vgg16.pth", "vgg.pth", "lpips.safetensors"}
    torch.set_default_dtype(torch.bfloat16)  # changes nothing
    try:
        loss = LPIPS.from_file(out)
    finally:
        torch.set_default_dtype(torch.float32)
    wanted = published_distance(features, lins, *pictures)
    assert wanted.min() > 1e-3
    torch.testing.assert_close(loss.distances(*pictures).double(), wanted, atol=1e-7, rtol=1e-5)
    assert [values.shape[1:] for values in loss.features(pictures[0])] == [
        (3, 40, 33), (3, 20, 16), (3, 10, 8), (6, 5, 4), (3, 2, 2)
    ]  # fmt: skip


class BlurredPool(nn.Module):
    """Max pooling of stride 1, then a [1, 2, 1] blur of stride 2 behind two reflected pixels; by numpy."""

    def forward(self, values):
        values = F.max_pool2d(values, 2, stride=1).detach().numpy()
        values = np.pad(values, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
        height, width = ((side - 3) // 2 + 1 for side in values.shape[2:])
        total = 0
        for (y, down), (x, right) in itertools.product(enumerate((0.25, 0.5, 0.25)), repeat=2):
            total = total + down * right * values[:, :, y : y + 2 * height : 2, x : x + 2 * width : 2]
        return torch.from_numpy(total)


def test_one_file_of_a_trunk_with_blurs(tmp_path, pictures):
    """The layout of `stlpips-pytorch`."""
    features, lins = vgg16(halve=BlurredPool)[:-1], heads()
    weights, stage = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), **lins}, 1
    for index, layer in enumerate(features):
        if isinstance(layer, BlurredPool):
            stage += 1
            kernel = torch.outer(*[torch.tensor([1.0, 2.0, 1.0]) / 4] * 2)
            weights[f"net.slice{stage}.{index}.filt"] = kernel.expand(4, 1, 3, 3)
        for name, value in layer.state_dict().items():
            weights[f"net.slice{stage}.{index}.{name}"] = value
    torch.save(weights, tmp_path / "both.pth", _use_new_zipfile_serialization=False)
    loss = LPIPS.from_file(convert_lpips(tmp_path / "both.pth", None, tmp_path / "out.safetensors"))
    wanted = published_distance(features, lins, *pictures)
    torch.testing.assert_close(loss.distances(*pictures).double(), wanted, atol=1e-7, rtol=1e-5)
    assert loss.features(pictures[0])[1].shape[2:] == (21, 17)


def test_defaults_are_vgg16():
    with torch.device("meta"):
        loss = LPIPS()
    assert sum(weight.numel() for name, weight in loss.named_parameters() if "convs" in name) == 14_714_688
    assert [len(head) for head in loss.heads] == [64, 128, 256, 512, 512]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("features.28.weight"), "holds 12 convolutions of a VGG16, not 13"),
        (lambda w: w.pop("features.28.bias"), r"has no features\.28\.bias"),
        (lambda w: w.pop("lin3.model.1.weight"), r"has no lin3\.model\.1\.weight"),
        (
            lambda w: w.update({"lin3.model.1.weight": torch.ones(1, 9, 1, 1)}),
            r"of shape \[1, 9, 1, 1\], not \[1, 6, 1",
        ),
        (lambda w: w.update({"features.0.weight": torch.ones(2, 3, 5, 5)}), r"of shape \[2, 3, 5, 5\], not \[2, 3, 3"),
    ],
)
def test_other_files_are_refused(tmp_path, change, message):
    weights = {f"features.{name}": value for name, value in vgg16().state_dict().items()} | heads()
    change(weights)
    torch.save(weights, tmp_path / "both.pth")
    with pytest.raises(ConversionError, match=f"both.pth.*{message}"):
        convert_lpips(tmp_path / "both.pth", None, tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["both.pth"]


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    torch.save(vgg16(), tmp_path / "module.pth")  # a whole module, not its weights
    with pytest.raises(ConversionError, match="module.pth"):
        convert_lpips(tmp_path / "module.pth", None, tmp_path / "out.safetensors")


def test_other_files_are_no_lpips(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="`path`: .*model.safetensors is no file of `convert_lpips`"):
        LPIPS.from_file(path)
