import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_judges import random_inception
from torch.nn import functional as F

from uniwetok_hf.conversion import ConversionError, convert_inception
from uniwetok_hf.evaluation.inception import InceptionFeatures, inception_score, scale_bilinear
from uniwetok_hf.evaluation.judges import short_digest


@pytest.fixture(scope="module")
def network():
    return random_inception()


def pictures(count: int, height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_shapes_and_names_are_those_of_the_published_weights(network):
    weights = network.state_dict()
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_850_960
    assert weights["Mixed_6e.branch7x7dbl_4.conv.weight"].shape == (192, 192, 7, 1)
    assert weights["Mixed_7b.branch3x3dbl_3b.bn.running_var"].shape == (384,)
    assert weights["Mixed_6a.branch3x3dbl_3.conv.weight"].shape == (96, 96, 3, 3)
    features, logits = network(torch.from_numpy(pictures(2)).permute(0, 3, 1, 2))
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    assert torch.allclose(logits, F.linear(features, network.fc.weight), rtol=1e-4)


def test_pictures_are_scaled_without_half_pixel_centres():
    ramp = torch.arange(4.0).repeat(1, 1, 4, 1)
    assert scale_bilinear(ramp, 8)[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    assert scale_bilinear(ramp.mT, 2)[0, 0, :, 0].tolist() == [0, 2]


def test_averages_leave_the_border_out(network):
    """Of equal pixels they are equal up to the corners, and a later maximum changes nothing."""
    pooled = []
    hook = network.Mixed_5b.branch_pool.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    network.Mixed_5b(torch.ones(1, 192, 5, 5))
    hook.remove()
    assert torch.allclose(pooled[0], torch.ones(1, 192, 5, 5))


def test_pictures_of_several_sizes_keep_their_order(network):
    features = InceptionFeatures(network, "random")
    mixed = [*pictures(2), *pictures(1, 32, 32), *pictures(1)]
    together = features.embed_images(mixed)
    apart = np.concatenate([features.embed_images([one]) for one in mixed])
    np.testing.assert_allclose(together, apart, rtol=1e-3, atol=1e-6 * np.abs(apart).max())
    assert (together[0] != together[1]).any()


def test_a_converted_file(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    path = convert_inception(tmp_path / "inception.pth", tmp_path / "inception.safetensors")
    torch.set_default_dtype(torch.bfloat16)  # changes nothing
    try:
        loaded = InceptionFeatures.from_file(path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all((loaded.network.state_dict()[name] == one).all() for name, one in network.state_dict().items())
    digest = short_digest(network)
    assert loaded.describe() == f"FID's Inception network (inception.safetensors, weights {digest})"


def test_files_of_other_networks(network, tmp_path):
    torch.save({"fc.weight": torch.ones(1000, 2048)}, tmp_path / "later.pth")
    with pytest.raises(ConversionError, match=r"later.pth is not FID's Inception network: it has no fc.weight \[1008"):
        convert_inception(tmp_path / "later.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    save_file({"fc.bias": torch.ones(1008)}, tmp_path / "part.safetensors")
    for name in ("part.safetensors", "later.pth", "absent.safetensors"):
        with pytest.raises(ValueError, match=f"`inception`: .*{name} is no file of `convert_inception`"):
            InceptionFeatures.from_file(tmp_path / name)


def test_the_score_by_hand():
    sure = np.log(np.array([[1.0, 1e-12], [1e-12, 1.0]]))
    assert inception_score(sure) == pytest.approx(2)
    assert inception_score(np.zeros((6, 4))) == pytest.approx(1)
    assert inception_score(np.concatenate([sure, sure[:1], sure[:1]]), split_size=2) == pytest.approx(1.5)


def test_features_are_those_of_torch_fidelity(network, tmp_path):
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="it needs torchvision")
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    options = {"feature_extractor_weights_path": str(tmp_path / "inception.pth")}
    wanted = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], **options)
    for sides in ((256, 256), (300, 420), (32, 64)):
        batch = torch.from_numpy(pictures(2, *sides)).permute(0, 3, 1, 2)
        for found, expected in zip(network(batch), wanted(batch), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
