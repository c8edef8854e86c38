import sys

import numpy as np
import pytest
from PIL import Image

from uniwetok_hf.evaluation import psnr, ssim


def noisy_pair(height, width, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, np.clip(image + rng.integers(-20, 21, image.shape), 0, 255).astype(np.uint8)


class TestPSNR:
    @pytest.mark.parametrize("difference", [1, 16, 255])
    def test_constant_difference(self, difference):
        images = np.zeros((5, 4, 3), dtype=np.uint8)
        assert psnr(images, images + np.uint8(difference)) == pytest.approx(20 * np.log10(255 / difference))

    def test_one_wrong_pixel(self):
        image = np.zeros((10, 10, 3), dtype=np.uint8)
        other = image.copy()
        other[3, 4] = [0, 30, 0]
        assert psnr(image, other) == pytest.approx(10 * np.log10(255**2 / (900 / 300)))

    def test_differences_do_not_wrap_around(self):
        black, white = np.zeros((2, 2, 3), dtype=np.uint8), np.full((2, 2, 3), 255, dtype=np.uint8)
        assert psnr(black, white) == psnr(white, black) == 0

    def test_identical_pictures(self):
        image, _ = noisy_pair(8, 8)
        assert psnr(image, image) == float("inf")

    def test_agrees_with_scikit_image(self):
        metrics = pytest.importorskip("skimage.metrics")
        image, other = noisy_pair(33, 41)
        assert psnr(image, other) == pytest.approx(
            metrics.peak_signal_noise_ratio(image, other, data_range=255), abs=1e-10
        )

    def test_kinds_of_picture(self):
        image, other = noisy_pair(9, 7)
        expected = psnr(image, other)
        assert isinstance(expected, float)
        assert psnr(Image.fromarray(image), Image.fromarray(other)) == expected
        assert psnr(Image.fromarray(image), other) == expected

    def test_grey(self):
        image, other = noisy_pair(9, 7)
        assert psnr(image[..., 0], Image.fromarray(other[..., 0])) > 0

    def test_batches_are_per_picture(self):
        pairs = [noisy_pair(9, 7, seed=0), noisy_pair(9, 7, seed=1)]
        images, others = np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])
        values = psnr(images, others)
        assert values.shape == (2,) and values.dtype == np.float64
        np.testing.assert_array_equal(values, [psnr(*pairs[0]), psnr(*pairs[1])])

    def test_lists_of_different_sizes(self):
        pairs = [noisy_pair(9, 7), noisy_pair(20, 30)]
        values = psnr([pairs[0][0], Image.fromarray(pairs[1][0])], [pairs[0][1], pairs[1][1]])
        np.testing.assert_array_equal(values, [psnr(*pairs[0]), psnr(*pairs[1])])


class TestSSIM:
    @pytest.fixture(autouse=True)
    def metrics(self):
        return pytest.importorskip("skimage.metrics")

    def test_agrees_with_scikit_image(self, metrics):
        image, other = noisy_pair(33, 41)
        expected = metrics.structural_similarity(image, other, channel_axis=-1, data_range=255)
        assert 0 < expected < 1
        assert ssim(image, other) == expected
        assert ssim(Image.fromarray(image), Image.fromarray(other)) == expected
        np.testing.assert_array_equal(ssim([image, image], [other, image]), [expected, 1.0])

    def test_grey(self, metrics):
        image, other = (picture[..., 0] for picture in noisy_pair(12, 15))
        assert ssim(image, other) == metrics.structural_similarity(image, other, data_range=255)

    def test_constant_pictures_by_hand(self):
        # Without variance only the luminance term is left: (2ab + c1) / (a^2 + b^2 + c1), c1 = (0.01 * 255)^2.
        low, high = np.full((8, 8, 3), 100, dtype=np.uint8), np.full((8, 8, 3), 150, dtype=np.uint8)
        assert ssim(low, high) == pytest.approx((2 * 100 * 150 + 6.5025) / (100**2 + 150**2 + 6.5025))

    def test_too_small(self):
        with pytest.raises(ValueError, match="at least 7 pixels, got 6x9"):
            ssim(*noisy_pair(6, 9))


def test_ssim_without_scikit_image_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)  # what import finds when it is not installed
    with pytest.raises(ImportError, match=r"uniwetok-hf\[eval\]"):
        ssim(*noisy_pair(9, 9))
    assert psnr(*noisy_pair(9, 9)) > 0


@pytest.mark.parametrize(
    "images, references, message",
    [
        (np.zeros((4, 4, 3)), np.zeros((4, 4, 3)), "images: pictures must be uint8"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.float32), "references: pictures must be uint8"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8), "equal shapes"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((3, 4, 4, 3), np.uint8), "equally many, got 2 and 3"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.uint8), "both be one picture"),
        (np.zeros((3, 4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), r"shape \[H, W, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), np.zeros((0, 4, 3), np.uint8), r"shape \[H, W, 3\]"),
        (Image.new("RGBA", (4, 4)), Image.new("RGBA", (4, 4)), "mode RGB or L, got RGBA"),
    ],
)
def test_errors(images, references, message):
    with pytest.raises(ValueError, match=message):
        psnr(images, references)
