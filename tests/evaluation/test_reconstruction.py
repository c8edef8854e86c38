import numpy as np
import pytest
import torch
from PIL import Image
from tiny_judges import build_vit

from uniwetok_hf.evaluation.baselines import white
from uniwetok_hf.evaluation.distributions import frechet_distance
from uniwetok_hf.evaluation.judges import Judge, PerceptualNetwork
from uniwetok_hf.evaluation.metrics import psnr, ssim
from uniwetok_hf.evaluation.reconstruction import (
    METHODS,
    evaluate_reconstruction,
    photographs,
    reconstruct,
    reconstruct_all,
)
from uniwetok_hf.modeling.image_processing_uniwetok import UniWeTokImageProcessor


def pictures(*sizes):
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in sizes]
    return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(coarse, sizes, strict=True)]


def by_name(report):
    return {tuple(row.labels.values()): row.scores for row in report.rows}


@pytest.mark.parametrize("size", [(8, 8), (13, 7), (1, 1)])
def test_reconstruction_has_the_pictures_size_and_follows_the_seed(tiny_model, size):
    image = Image.radial_gradient("L").resize(size).convert("RGB")
    first, second, other = (np.asarray(reconstruct(tiny_model, [image], seed)[0].result) for seed in (0, 0, 1))
    assert first.shape == (size[1], size[0], 3)
    assert np.array_equal(first, second) and not np.array_equal(first, other)


def test_reconstruction_of_many_is_that_of_each(tiny_model):
    shown = pictures((16, 16), (20, 9), (16, 16), (5, 40))
    together = reconstruct(tiny_model, shown, seed=3)
    for image, one in zip(shown, together, strict=True):
        (alone,) = reconstruct(tiny_model, [image], seed=3)
        difference = np.asarray(one.result).astype(int) - np.asarray(alone.result)
        assert np.abs(difference).max() <= 1 and torch.equal(one.codes, alone.codes)
        assert one.original is image
    assert together[1].num_tokens == 5 * 3 and together[1].num_bytes == 5 * 3 * 2  # 16 bits a token of 4 x 4 pixels


def test_a_crop_is_what_is_compared(tiny_model):
    (image,) = pictures((40, 20))
    size = {"height": 16, "width": 16}
    processor = UniWeTokImageProcessor(stride=4, fit="crop", size=size)
    (one,) = reconstruct(tiny_model, [image], 0, processor)
    scaled = image.resize((32, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(one.original), np.asarray(scaled.crop((8, 0, 24, 16))))
    assert one.result.size == one.decoded.size == (16, 16)


def test_scores_are_means_over_pictures_and_over_groups(tiny_model):
    shown = pictures((24, 24), (8, 12), (12, 8))
    rows = [{"image": image, "style": style} for image, style in zip(shown, "aba", strict=True)]
    report = evaluate_reconstruction(tiny_model, iter(rows), by="style", seed=2, batch_size=2)
    table, facts, found = report.rows, report.facts["codes at native"], by_name(report)
    assert [row.labels["of"] for row in table[:3]] == ["all", "a", "b"]
    assert list(dict.fromkeys(row.labels["what"] for row in table)) == list(METHODS)
    assert [row for row in table if row.for_card] == table[:1]
    # 72 bytes are enough for a WebP of one colour, 12 bytes are not.
    assert found["WebP of as many bytes", "native", "all"]["psnr"].count == 1
    assert ("WebP of as many bytes", "native", "b") not in found
    assert facts["pictures_too_small_for_WebP"] == 2
    results = [reconstruct(tiny_model, [image], 2)[0].result for image in shown]
    values = [psnr(result, image) for result, image in zip(results, shown, strict=True)]
    assert found["model", "native", "all"]["psnr"].value == pytest.approx(np.mean(values), abs=0.02)
    assert found["model", "native", "a"]["psnr"].value == pytest.approx((values[0] + values[2]) / 2, abs=0.02)
    assert found["model", "native", "b"]["psnr"].count == 1
    blank = [white(image) for image in shown]
    assert found["all white", "native", "all"]["psnr"].value == pytest.approx(psnr(blank, shown).mean())
    assert found["all white", "native", "all"]["ssim"].value == pytest.approx(ssim(blank, shown).mean())
    assert facts["num_pictures"] == 3 and facts["bytes_per_picture"] == pytest.approx((72 + 12 + 12) / 3)


def test_webp_gets_as_many_bytes_as_the_codes(tiny_model):
    # 32 x 32 tokens of 16 bits: 2048 bytes for a smooth picture of 128 x 128.
    report = evaluate_reconstruction(tiny_model, [{"image": image} for image in pictures((128, 128))], [128])
    assert "pictures_too_small_for_WebP" not in report.facts["codes at 128"]
    assert by_name(report)["WebP of as many bytes", "128x128"]["psnr"].value > 30
    assert list(report.rows[0].labels) == ["what", "size"]


def test_enlarged_pictures_are_counted_and_wrong_sizes_refused(tiny_model):
    rows = [{"image": image} for image in pictures((8, 40), (16, 16))]
    assert evaluate_reconstruction(tiny_model, rows, [12]).facts["codes at 12"]["pictures_that_were_enlarged"] == 1
    for size in (0, 2, 18):
        with pytest.raises(ValueError, match=f"`size` must be a multiple of the model's 4 pixels, got {size}"):
            evaluate_reconstruction(tiny_model, rows, [None, size])
    with pytest.raises(ValueError, match="no picture"):
        evaluate_reconstruction(tiny_model, [])


def test_tiny_pictures_have_no_ssim(tiny_model):
    rows = [{"image": image} for image in pictures((4, 4), (16, 16))]
    scores = by_name(evaluate_reconstruction(tiny_model, rows))
    assert scores["model", "native"]["ssim"].count == 1 and scores["model", "native"]["psnr"].count == 2


def test_judges_add_their_distances(tiny_model, tmp_path):
    folder = build_vit(tmp_path / "vit")
    judge, network = Judge.from_pretrained(folder), PerceptualNetwork.from_pretrained(folder)
    shown = pictures(*[(16, 16)] * 6)
    rows = [{"image": image, "n": n % 2} for n, image in enumerate(shown)]
    settings = {"by": "n", "feature_model": judge, "perceptual": network, "batch_size": 4}
    report = evaluate_reconstruction(tiny_model, rows, [16], **settings)
    found = by_name(report)
    features = [judge.embed_images(images) for images in (reconstruct_all(tiny_model, shown), shown)]
    score = found["model", "16x16", "all"]["frechet"]
    assert score.value == pytest.approx(frechet_distance(*features), rel=0.02) and score.count == 6
    assert score.interval[0] < score.value < score.interval[1]
    assert "frechet" not in found["model", "16x16", "0"]  # too few
    assert found["model", "16x16", "0"]["perceptual"].count == 3
    assert found["8x8 thumbnail", "16x16", "all"]["perceptual"].value > 0


def test_photographs_are_there():
    found = {row["name"]: row["image"] for row in photographs()}
    assert found["astronaut"].size == (512, 512) and all(image.mode == "RGB" for image in found.values())


def test_several_sizes_are_measured_in_one_pass(tiny_model):
    rows = [{"image": image} for image in pictures((24, 24), (40, 16), (16, 16))]
    together = evaluate_reconstruction(tiny_model, iter(rows), [16, None], batch_size=2)
    apart = [evaluate_reconstruction(tiny_model, rows, [size], batch_size=2) for size in (16, None)]
    assert together.rows == apart[0].rows + apart[1].rows
    assert together.facts == apart[0].facts | apart[1].facts
