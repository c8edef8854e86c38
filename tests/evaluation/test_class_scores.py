import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_judges import build_vit, random_inception

from uniwetok_hf.cli.main import main
from uniwetok_hf.evaluation.class_scores import evaluate_classes, open_samples, open_statistics
from uniwetok_hf.evaluation.distributions import frechet_distance, precision_recall
from uniwetok_hf.evaluation.inception import InceptionFeatures, inception_score
from uniwetok_hf.evaluation.judges import Judge


def make_samples(path, count: int = 12, seed: int = 0, side: int = 32) -> Path:
    pictures = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    np.savez(path, arr_0=pictures)
    return path


def test_samples_lie_in_their_file(tmp_path):
    path = make_samples(tmp_path / "a.npz", 7)
    samples = open_samples(path)
    assert isinstance(samples, np.memmap)
    with np.load(path) as archive:
        assert (samples == archive["arr_0"]).all()


def test_files_that_are_none(tmp_path):
    pictures = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez_compressed(tmp_path / "packed.npz", arr_0=pictures)
    np.savez(tmp_path / "named.npz", pictures=pictures)
    np.savez(tmp_path / "float.npz", arr_0=pictures.astype(np.float32))
    np.savez(tmp_path / "grey.npz", arr_0=pictures[..., 0])
    whole = make_samples(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "empty.npz", arr_0=pictures[:0])
    np.savez(tmp_path / "lonely.npz", arr_0=pictures[:1])
    wanted = {
        "empty": "it holds 0 pictures",
        "lonely": "it holds 1 pictures",
        "packed": "it is compressed",
        "named": "arr_0.npy",
        "float": "float32",
        "grey": r"\[2, 8, 8\]",
    }
    for name, message in (wanted | {"cut": "not a zip file", "absent": "No such file"}).items():
        with pytest.raises(ValueError, match=f"{name}.npz is no file of pictures: .*{message}"):
            open_samples(tmp_path / f"{name}.npz")


def test_scores_by_the_features_of_a_model(tmp_path):
    judge = Judge.from_pretrained(build_vit(tmp_path / "vit"))
    paths = [make_samples(tmp_path / f"{seed}.npz", 12 + seed, seed) for seed in range(2)]
    report = evaluate_classes(*paths, judge, batch_size=5)
    features = [judge.embed_images([Image.fromarray(np.array(one)) for one in open_samples(path)]) for path in paths]
    scores = report.rows[0].scores
    assert scores["frechet"].value == pytest.approx(frechet_distance(*features), rel=1e-4)
    assert (scores["precision"].value, scores["recall"].value) == precision_recall(*features)
    assert "no FID" in report.protocol["features"] and "fid" not in scores
    same = evaluate_classes(paths[0], paths[0], judge).rows[0].scores
    assert same["frechet"].value == pytest.approx(0, abs=1e-6) and same["precision"].value == 1


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """FID's network with random weights."""
    return InceptionFeatures(random_inception(), "random")


def test_published_scores(inception, tmp_path):
    paths = [make_samples(tmp_path / f"{seed}.npz", 6, seed) for seed in range(2)]
    report = evaluate_classes(*paths, inception, batch_size=4)
    scores = report.rows[0].scores
    assert list(scores) == ["fid", "inception_score", "precision", "recall"]
    embedded = [inception.embed_batch(open_samples(path)) for path in paths]
    features = [np.stack([one for one, _ in part]) for part in embedded]
    assert scores["fid"].value == pytest.approx(frechet_distance(*features), rel=1e-6)
    assert (scores["precision"].value, scores["recall"].value) == precision_recall(*features)
    logits = np.stack([one for _, one in embedded[0]])
    assert scores["inception_score"].value == pytest.approx(inception_score(logits), rel=1e-6)
    assert report.protocol["FID against"] == "its pictures"
    same = evaluate_classes(paths[0], paths[0], inception).rows[0].scores
    assert same["fid"].value < 1e-6 * scores["fid"].value and same["precision"].value == 1


def test_fid_against_the_statistics_of_a_file(inception, tmp_path):
    generated, real = (make_samples(tmp_path / f"{seed}.npz", 5, seed) for seed in range(2))
    features = inception.embed_images([Image.fromarray(np.array(one)) for one in open_samples(generated)])
    mean, covariance = features.mean(0), np.cov(features.astype(np.float64), rowvar=False)
    with np.load(real) as archive:
        np.savez(tmp_path / "statistics.npz", arr_0=archive["arr_0"], mu=mean + 1, sigma=covariance)
    report = evaluate_classes(generated, tmp_path / "statistics.npz", inception)
    assert report.protocol["FID against"] == "statistics of the file"
    assert report.rows[0].scores["fid"].value == pytest.approx(2048, rel=1e-5)  # only the means differ, by 1 each


def test_statistics_of_a_reference_batch(tmp_path):
    pictures = np.zeros((2, 8, 8, 3), np.uint8)
    assert open_statistics(make_samples(tmp_path / "none.npz")) is None
    found = {"mu": np.ones(2048, np.float32), "sigma": np.eye(2048, dtype=np.float32)}
    np.savez(tmp_path / "batch.npz", arr_0=pictures, **found)
    statistics = open_statistics(tmp_path / "batch.npz")
    assert [array.dtype for array in statistics] == [np.float64] * 2 and (statistics[1] == found["sigma"]).all()
    np.savez(tmp_path / "half.npz", arr_0=pictures, mu=found["mu"])
    with pytest.raises(ValueError, match=r"half.npz: mu \[2048\] and sigma .* are needed, got {'mu': \[2048\]}"):
        open_statistics(tmp_path / "half.npz")


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    make_samples("run/samples.npz"), make_samples("real.npz", 14, 1)
    Path("run/settings.json").write_text(json.dumps({"guidance_scale": 3.0, "seed": 7, "weights": "x"}))
    judge = build_vit(tmp_path / "vit")
    assert main(["evaluate", "classes", "run/samples.npz", "real.npz", "--features", judge]) == 0
    out = capsys.readouterr().out
    assert "Classes: run on real.npz" in out and "Fréchet" in out and "no FID" in out
    saved = json.loads(Path("run/scores_of_uniwetok/results.json").read_text())
    assert saved["protocol"]["guidance scale"] == 3.0 and saved["protocol"]["seed"] == 7
    assert saved["results"][0]["scores"]["frechet"]["count"] == 12
    assert main(["evaluate", "classes", "run/samples.npz", "real.npz"]) == 1
    assert "give either --inception or --features" in capsys.readouterr().err
