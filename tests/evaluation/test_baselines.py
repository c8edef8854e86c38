import io

import numpy as np
import pytest
from PIL import Image, features

from uniwetok_hf.evaluation.baselines import SCALES, small_thumbnail, webp, white
from uniwetok_hf.evaluation.metrics import psnr


def test_thumbnail_keeps_only_low_frequencies():
    plain = Image.new("RGB", (64, 64), (10, 200, 30))
    assert np.array_equal(np.asarray(small_thumbnail(plain)), np.asarray(plain))
    stripes = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    assert np.ptp(np.asarray(small_thumbnail(stripes))) <= 1


def test_white():
    assert np.asarray(white(Image.new("RGB", (5, 3)))).min() == 255 and white(Image.new("RGB", (5, 3))).size == (5, 3)


@pytest.fixture
def picture():
    return Image.radial_gradient("L").resize((96, 64)).convert("RGB")


def test_webp_keeps_within_the_bytes_and_uses_them(picture):
    small, large = webp(picture, 200), webp(picture, 1000)
    assert small[1] <= 200 < large[1] <= 1000
    assert small[0].size == large[0].size == picture.size
    assert psnr(small[0], picture) < psnr(large[0], picture)


def test_webp_is_the_best_of_all_scales_and_qualities(picture):
    best = 0.0
    for scale in SCALES:
        size = (round(96 * scale), round(64 * scale))
        for quality in range(0, 101, 10):
            buffer = io.BytesIO()
            picture.resize(size, Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=quality, method=4)
            if buffer.tell() <= 250:
                result = Image.open(buffer).convert("RGB").resize(picture.size, Image.Resampling.BICUBIC)
                best = max(best, psnr(result, picture))
    assert psnr(webp(picture, 250)[0], picture) >= best - 0.1


def test_webp_says_when_it_can_not(picture, monkeypatch):
    assert webp(picture, 16) is None
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(ImportError, match="WebP"):
        webp(picture, 300)
