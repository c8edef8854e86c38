import numpy as np
import pytest
from PIL import Image

from uniwetok_hf.evaluation.metrics import psnr
from uniwetok_hf.evaluation.reconstruction import photographs, reconstruct, scores, small_thumbnail, white


def test_scores_are_means_over_groups():
    grey, black = Image.new("RGB", (16, 16), (128,) * 3), Image.new("RGB", (16, 16))
    pictures = [("a", grey), ("a", grey), ("a", black), ("b", black)]
    found = scores(pictures, white)
    per_grey, per_black = psnr(white(grey), grey), psnr(white(black), black)
    assert found["a"]["psnr"] == pytest.approx((2 * per_grey + per_black) / 3, abs=1e-3)
    assert found["b"]["psnr"] == pytest.approx(per_black, abs=1e-3) == 0
    assert found["mean"]["psnr"] == pytest.approx((found["a"]["psnr"] + found["b"]["psnr"]) / 2, abs=1e-3)


def test_thumbnail_keeps_only_low_frequencies():
    plain = Image.new("RGB", (64, 64), (10, 200, 30))
    assert np.array_equal(np.asarray(small_thumbnail(plain)), np.asarray(plain))
    stripes = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    assert np.ptp(np.asarray(small_thumbnail(stripes))) <= 1


@pytest.mark.parametrize("size", [(8, 8), (13, 7), (1, 1)])
def test_reconstruction_has_the_pictures_size_and_follows_the_seed(tiny_model, size):
    image = Image.radial_gradient("L").resize(size).convert("RGB")
    first, second, other = (np.asarray(reconstruct(tiny_model, image, seed)) for seed in (0, 0, 1))
    assert first.shape == (size[1], size[0], 3)
    assert np.array_equal(first, second) and not np.array_equal(first, other)


def test_photographs_are_there():
    found = dict(photographs())
    assert found["astronaut"].size == (512, 512) and all(image.mode == "RGB" for image in found.values())
