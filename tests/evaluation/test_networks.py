import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_judges import build_vit

from uniwetok_hf.evaluation.metrics import perceptual_distance
from uniwetok_hf.evaluation.networks import describe_network, load_network
from uniwetok_hf.losses.perceptual import LPIPS, PerceptualLoss


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    return image, np.clip(image.astype(int) + rng.integers(-60, 61, image.shape), 0, 255).astype(np.uint8)


def test_a_vision_model(tmp_path, pair):
    network = load_network(build_vit(tmp_path / "vit"))
    assert isinstance(network, PerceptualLoss)
    assert describe_network(network, tmp_path / "vit") == "features of vit (ViTModel), weights 1"
    images, references = pair
    values = perceptual_distance(images, references, network)
    with torch.no_grad():
        tensors = [torch.from_numpy(p / np.float32(127.5) - 1).permute(0, 3, 1, 2).float() for p in pair]
        expected = network.distances(*tensors)
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    assert values.min() > 0 and perceptual_distance(images[0], images[0], network) == 0


def test_lpips_from_a_file(tmp_path, pair):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(LPIPS([4] * 13).state_dict(), tmp_path / "lpips.safetensors")
    network = load_network(tmp_path / "lpips.safetensors")
    assert isinstance(network, LPIPS)
    assert describe_network(network, tmp_path / "lpips.safetensors") == "LPIPS with the weights of lpips.safetensors"
    assert perceptual_distance(pair[0][0], pair[1][0], network) > 0
    grey = pair[0][0, ..., 0]
    assert perceptual_distance(grey, grey, network) == 0


def test_no_network(tmp_path):
    for source in (tmp_path / "missing", tmp_path / "missing.safetensors"):
        with pytest.raises(ValueError, match="missing"):
            load_network(source)
