import numpy as np
import pytest
import torch
from PIL import Image

from uniwetok_hf.evaluation.choices import (
    chance_of,
    choose_rivals,
    cosines,
    nearest_is_own,
    r_precision_outcomes,
    ranks_of_right,
    thumbnail,
    top_k_outcomes,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_ranks_and_top_k_by_hand():
    scores = np.array([[0.9, 0.1, 0.2], [0.1, 0.2, 0.3], [0.5, 0.5, 0.1]])
    assert ranks_of_right(scores, [0, 1, 0]).tolist() == [0, 1, 1]  # a tie is wrong
    assert top_k_outcomes(scores, [0, 1, 0]).tolist() == [True, False, False]
    assert top_k_outcomes(scores, [0, 1, 0], k=2).tolist() == [True, True, True]
    assert not top_k_outcomes(np.zeros((5, 4)), [0, 1, 2, 3, 0], k=3).any()  # a model that knows nothing


@pytest.mark.parametrize(
    ("scores", "right", "message"),
    [
        (np.zeros((2, 1)), [0, 0], "2 or more candidates"),
        (np.zeros((2, 3)), [0], "one index for each of 2 rows"),
        (np.zeros((2, 3)), [0, 3], "0..2, got 0..3"),
        (np.zeros((2, 3)), [0, -1], "0..2, got -1..0"),
        (np.zeros((2, 3)), [0.0, 1.0], "one index"),
        (np.full((2, 3), np.nan), [0, 1], "nan"),
    ],
)
def test_choices_refuse(scores, right, message):
    with pytest.raises(ValueError, match=message):
        top_k_outcomes(scores, right)
    with pytest.raises(ValueError, match="`k`"):
        top_k_outcomes(np.zeros((1, 2)), [0], k=0)


def test_cosines():
    found = cosines(np.array([[3.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))
    assert found == pytest.approx(np.array([[1, 0, 2**-0.5], [0, 0, 0]]))


def test_rivals_mean_something_else_and_stay_in_their_group():
    meanings, groups = ["a", "a", "b", "c", "d", "e"], ["x", "x", "x", "x", "y", "y"]
    for seed in range(20):
        rivals = choose_rivals(meanings, 2, seeded(seed), groups)
        assert all(meanings[other] != meanings[i] for i, others in enumerate(rivals) for other in others)
        assert all(groups[other] == groups[i] for i, others in enumerate(rivals) for other in others)
        assert [len(others) for others in rivals] == [2, 2, 2, 2, 1, 1]
        assert all(len(set(others)) == len(others) for others in rivals)
    assert (
        choose_rivals(meanings, 2, seeded(1))
        == choose_rivals(meanings, 2, seeded(1))
        != choose_rivals(meanings, 2, seeded(2))
    )


def test_rivals_differ_from_each_other():
    """Ten labels of ten rows each: there are nine other texts, and a blind choice is right once in ten."""
    meanings = [index % 10 for index in range(100)]
    rivals = choose_rivals(meanings, 31, seeded(0))
    assert all(len(others) == len({meanings[other] for other in others}) == 9 for others in rivals)
    assert chance_of(rivals) == pytest.approx(0.1)
    assert choose_rivals(["a", "b"], 0, seeded(0)) == [[], []]


def test_the_chance_of_rivals():
    assert chance_of([[1], [0, 2, 3]]) == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_r_precision_of_a_perfect_and_of_a_blind_judge():
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(300, 16))
    rivals = choose_rivals(range(300), 9, seeded())
    assert r_precision_outcomes(texts * 3 + 0.01 * rng.normal(size=texts.shape), texts, rivals).all()
    blind = r_precision_outcomes(rng.normal(size=texts.shape), texts, rivals)
    assert abs(blind.mean() - chance_of(rivals)) < 0.05
    assert not r_precision_outcomes(-texts, texts, rivals).any()
    assert not r_precision_outcomes(texts, np.ones_like(texts), rivals).any()  # all texts alike


def test_r_precision_by_hand():
    pictures = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.2]])
    texts = np.array([[1.0, 0.1], [0.0, 1.0], [0.0, 1.0]])
    assert r_precision_outcomes(pictures, texts, [[1, 2], [0], [0]]).tolist() == [True, True, False]
    # Of pictures in place of texts.
    real = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    found = np.array([[2.0, 0.1], [1.0, 0.9], [-1.0, 5.0]])
    assert r_precision_outcomes(found, real, [[1, 2], [0, 2], [0, 1]]).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="equally many, got 3, 3 and 2"):
        r_precision_outcomes(pictures, texts, [[1], [0]])
    with pytest.raises(ValueError, match=r"`rivals\[1\]` is empty"):
        r_precision_outcomes(pictures, texts, [[1], [], [0]])


def test_thumbnail_averages():
    picture = Image.new("RGB", (64, 64), "black")
    picture.paste("white", (0, 0, 1, 2))
    small = thumbnail(picture)
    assert small.shape == (32, 32, 3) and small.dtype == np.float32
    assert 127 <= small[0, 0, 0] <= 128 and small[0, 1:].max() == 0


def test_nearest_is_own():
    own, near, far = (np.full((2, 2, 3), value, np.float32) for value in (0, 10, 200))
    assert nearest_is_own(own + 4, own, [near, far])
    assert not nearest_is_own(own + 6, own, [near, far])
    assert not nearest_is_own(own + 5, own, [near])  # a tie is no success
