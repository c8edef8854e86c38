import numpy as np
import pytest

from uniwetok_hf.evaluation.distributions import (
    FeatureSums,
    frechet_distance,
    frechet_of_moments,
    frechet_score,
    precision_recall,
    precision_recall_outcomes,
)
from uniwetok_hf.evaluation.intervals import jackknife_score


def normal(count, channels, seed=0, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(size=(count, channels)) * scale + shift


def test_frechet_in_closed_form():
    # Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2 over the standard deviations.
    def crosses(mean, deviations):
        arms = np.sqrt(3 / 2) * np.diag(deviations)  # 4 samples: their covariance has the divisor 3
        return np.concatenate([arms, -arms]) + mean

    found = frechet_distance(crosses([0.0, 1.0], [1.0, 2.0]), crosses([3.0, -1.0], [2.0, 5.0]))
    assert found == pytest.approx(9 + 4 + 1 + 9)


@pytest.mark.parametrize("count", [6, 50])  # fewer and more samples than channels
def test_frechet_of_samples_is_that_of_their_statistics(count):
    scipy = pytest.importorskip("scipy.linalg")
    left, right = normal(count, 8), normal(count + 3, 8, seed=1, shift=0.5, scale=2)
    (mean, first), (other, second) = ((values.mean(0), np.cov(values.T)) for values in (left, right))
    # The root of C1 C2, by that of C1, which may be singular.
    half = scipy.sqrtm(first + 1e-12 * np.eye(8)).real
    root = scipy.sqrtm(half @ second @ half + 1e-12 * np.eye(8)).real
    expected = ((mean - other) ** 2).sum() + np.trace(first + second - 2 * root)
    assert frechet_distance(left, right) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(right, left) == pytest.approx(expected, rel=1e-5)


def test_frechet_of_samples_of_known_distributions():
    found = frechet_distance(normal(20_000, 3), normal(20_000, 3, seed=1, shift=1.0, scale=3.0))
    assert found == pytest.approx(3 * 1 + 3 * 4, rel=0.03)


def test_frechet_of_equal_sets_is_zero_without_noise_of_rounding():
    values = normal(5, 64, scale=100)
    assert frechet_distance(values, values) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(values, values[::-1] + 2) == pytest.approx(64 * 4)
    constant = np.ones((4, 3))
    assert frechet_distance(constant, constant + 1) == pytest.approx(3)


def test_precision_and_recall_of_equal_and_disjoint_sets():
    values = normal(50, 4)
    assert precision_recall(values, values) == (1, 1)
    assert precision_recall(values, values + 100) == (0, 0)
    white = np.ones((10, 4)) * 0.1
    assert precision_recall(white, white) == (1, 1)  # all distances are 0


def test_precision_and_recall_by_hand():
    # With k = 1 the references 0, 1, 3 reach 1, 1 and 2 far; the features 0.5, 10, 11 reach 9.5, 1 and 1.
    references, features = np.array([[0.0], [1.0], [3.0]]), np.array([[0.5], [10.0], [11.0]])
    precision, recall = precision_recall_outcomes(features, references, num_neighbours=1)
    assert precision.tolist() == [True, False, False]
    assert recall.tolist() == [True, True, True]
    narrow = np.array([[0.0], [0.1], [50.0], [50.1]])
    assert precision_recall(narrow, np.array([[0.0], [0.1], [0.3], [0.5]]), num_neighbours=1) == (0.5, 0.5)


def test_mode_collapse_costs_recall_and_noise_costs_precision():
    real = normal(300, 2)
    assert precision_recall(real[:150] * 0.05, real[150:])[1] < 0.1
    precision, recall = precision_recall(normal(150, 2, seed=1, scale=6), real)
    assert precision < 0.6 < recall


def test_blocks_change_nothing(monkeypatch):
    from uniwetok_hf.evaluation import distributions

    left, right = normal(40, 3), normal(30, 3, seed=1)
    expected = precision_recall(left, right)
    inside = distributions._inside
    monkeypatch.setattr(distributions, "_inside", lambda *arguments: inside(*arguments, block=7))
    assert precision_recall(left, right) == expected


@pytest.mark.parametrize(
    ("features", "references", "message"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), "`features` must be"),
        (np.zeros((4, 3)), np.zeros(4), "`references` must be"),
        (np.zeros((4, 3)), np.full((4, 3), np.nan), "`references` must be finite"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "same feature model"),
    ],
)
def test_errors(features, references, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(features, references)
    with pytest.raises(ValueError, match="4 or more"):
        precision_recall(np.zeros((3, 2)), np.zeros((5, 2)))
    with pytest.raises(ValueError, match="num_neighbours"):
        precision_recall(np.zeros((3, 2)), np.zeros((5, 2)), num_neighbours=0)


@pytest.mark.parametrize("channels", [4, 100])  # more and fewer than pictures: of sums, and of features
def test_a_score_of_sets_in_their_order(channels):
    left, right = normal(60, channels), normal(60, channels, seed=1, shift=0.5, scale=1.5)
    score = frechet_score(left, right)
    expected = jackknife_score(frechet_distance, left, right)
    assert score.value == pytest.approx(expected.value, rel=1e-9) and score.count == expected.count
    assert score.interval == pytest.approx(expected.interval, rel=1e-6)


def test_sums_add_up():
    values = normal(30, 5, shift=3)
    mean, covariance = FeatureSums.of(values).moments()
    assert mean == pytest.approx(values.mean(0)) and covariance == pytest.approx(np.cov(values.T))
    rest = FeatureSums.of(values) - FeatureSums.of(values[:10])
    assert rest.count == 20 and rest.moments()[1] == pytest.approx(np.cov(values[10:].T))


def test_moments_of_fewer_pictures_than_channels():
    left, right = normal(10, 60), normal(12, 60, seed=1, scale=2)
    found = frechet_of_moments(FeatureSums.of(left).moments(), FeatureSums.of(right).moments())
    assert found == pytest.approx(frechet_distance(left, right), rel=1e-6)
