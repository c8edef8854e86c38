"""Every metric as a configuration of our module of `evaluate`, loaded by path and without network."""

import io

import evaluate
import numpy as np
import pytest
from PIL import Image
from tiny_judges import build_vit

from uniwetok_hf.evaluation import METRICS_MODULE
from uniwetok_hf.evaluation.bits import bit_statistics
from uniwetok_hf.evaluation.distributions import frechet_distance, precision_recall
from uniwetok_hf.evaluation.judges import PerceptualNetwork
from uniwetok_hf.evaluation.metrics import perceptual_distance, psnr, ssim
from uniwetok_hf.evaluation.uniwetok_metrics.uniwetok_metrics import CONFIGURATIONS


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """`load(name)`; the library's own caches lie in a temporary folder."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.config.HF_MODULES_CACHE", str(folder / "modules"))
        yield lambda name: evaluate.load(METRICS_MODULE, name, cache_dir=str(folder / "data"))


def pairs():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((20, 30), (9, 9))]
    return images, [np.clip(i.astype(int) + rng.integers(-30, 31, i.shape), 0, 255).astype(np.uint8) for i in images]


def test_all_are_tested_here(load):
    names = "answer_scores bit_statistics frechet_distance linear_probe perceptual_distance precision_recall psnr"
    assert sorted(CONFIGURATIONS) == [*names.split(), "r_precision", "ssim", "zero_shot"]
    with pytest.raises(ValueError, match="`config_name` must be one of psnr, .*, got 'fid'"):
        load("fid")
    with pytest.raises(ValueError, match="`config_name` must be one of psnr, .*, got 'default'"):
        load(None)


def test_each_says_what_it_is(load):
    for name in CONFIGURATIONS:
        metric = load(name)
        assert metric.description == CONFIGURATIONS[name].description and metric.citation
        assert "predictions: " in metric.inputs_description and "Returns:" in metric.compute.__doc__


@pytest.mark.parametrize(("name", "function"), [("psnr", psnr), ("ssim", ssim)])
def test_picture_metrics(load, name, function):
    images, references = pairs()
    found = load(name).compute(predictions=images, references=[Image.fromarray(r) for r in references])
    values = function(images, references)
    assert found[name] == pytest.approx(values.mean()) and found["count"] == 2
    assert found["interval"][0] < found[name] < found["interval"][1]


def test_pictures_of_files_are_not_saved_anew(load):
    # `datasets` would write a picture that was read from a JPEG as a JPEG again.
    images, _ = pairs()
    buffer = io.BytesIO()
    Image.fromarray(images[0]).save(buffer, "JPEG", quality=30)
    read = Image.open(buffer)
    metric = load("psnr")
    metric.add(prediction=read, reference=Image.fromarray(images[0]))
    metric.add_batch(predictions=[images[1]], references=[images[1] // 2])
    expected = psnr([np.asarray(read), images[1]], [images[0], images[1] // 2])
    assert metric.compute()["psnr"] == pytest.approx(expected.mean(), abs=1e-9)


def test_perceptual_distance(load, tmp_path):
    images, references = pairs()
    folder = build_vit(tmp_path / "vit")
    found = load("perceptual_distance").compute(predictions=images, references=references, network=folder)
    expected = perceptual_distance(images, references, PerceptualNetwork.from_pretrained(folder).network)
    assert found["perceptual_distance"] == pytest.approx(expected.mean())


def test_metrics_of_sets(load):
    rng = np.random.default_rng(0)
    features, references = rng.normal(size=(30, 4)), rng.normal(size=(45, 4)) + 0.5
    found = load("frechet_distance").compute(predictions=features, reference_features=references)
    assert found["frechet_distance"] == pytest.approx(frechet_distance(features, references)) and found["count"] == 30
    found = load("precision_recall").compute(predictions=features, reference_features=references, num_neighbours=2)
    assert (found["precision"], found["recall"]) == precision_recall(features, references, 2)
    assert found["recall_count"] == 45 and found["precision_interval"][1] <= 1


def test_choices(load):
    vectors = np.eye(6)
    found = load("r_precision").compute(predictions=vectors, references=vectors, num_rivals=3)
    assert found["r_precision"] == 1 and found["chance"] == 0.25 and found["count"] == 6
    found = load("zero_shot").compute(predictions=vectors[:4], references=[0, 1, 2, 5], class_embeddings=vectors)
    assert found["accuracy"] == 0.75 and found["chance"] == pytest.approx(1 / 6)
    found = load("zero_shot").compute(predictions=vectors[:2] + 0.1, references=[1, 0], class_embeddings=vectors, k=6)
    assert found["accuracy"] == 1 and found["chance"] == 1


def test_linear_probe(load):
    features, labels = np.array([[-1.0], [-2.0], [1.0], [2.0]]), ["a", "a", "b", "b"]
    found = load("linear_probe").compute(
        predictions=[[-3.0], [3.0], [4.0]], references=["a", "b", "a"], train_features=features, train_labels=labels
    )
    assert found["accuracy"] == pytest.approx(2 / 3) and found["count"] == 3


def test_bit_statistics(load):
    import torch

    tokens = np.random.default_rng(0).choice([-1, 1], (40, 16))
    found = load("bit_statistics").compute(predictions=tokens)
    assert found == bit_statistics(torch.tensor(tokens, dtype=torch.float32)[:, :, None, None])


def test_answer_scores(load):
    found = load("answer_scores").compute(predictions=["A cat.", "red dog"], references=["a cat", "blue dog"])
    assert found["exact_match"] == 0.5 and found["f1"] == 0.75 and found["count"] == 2
