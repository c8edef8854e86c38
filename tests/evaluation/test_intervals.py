import math

import numpy as np
import pytest

from uniwetok_hf.evaluation.intervals import (
    Score,
    jackknife_score,
    mean_of_scores,
    mean_score,
    share_score,
    wilson_interval,
)


def test_wilson_interval():
    low, high = wilson_interval(50, 200)
    assert low == pytest.approx(0.1951, abs=1e-4) and high == pytest.approx(0.3143, abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0 and wilson_interval(10, 10)[1] == pytest.approx(1)


@pytest.mark.parametrize(("successes", "count"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses(successes, count):
    with pytest.raises(ValueError, match="`successes`"):
        wilson_interval(successes, count)


def test_wilson_covers_what_it_says():
    rng = np.random.default_rng(0)
    shares = rng.binomial(60, 0.1, size=2000)
    inside = [low <= 0.1 <= high for low, high in (wilson_interval(int(s), 60) for s in shares)]
    assert 0.93 < np.mean(inside) < 0.98


def test_share_and_mean_by_hand():
    share = share_score(iter([True, False, True, True]), chance=0.5)
    assert (share.value, share.count, share.chance) == (0.75, 4, 0.5)
    assert share.interval == wilson_interval(3, 4)
    mean = mean_score([1.0, 2.0, 3.0])
    assert mean.value == 2 and mean.count == 3
    assert mean.interval == pytest.approx((2 - 1.95996 / 3**0.5, 2 + 1.95996 / 3**0.5), abs=1e-4)


def test_mean_leaves_out_what_is_infinite_and_stays_in_its_bounds():
    assert mean_score([math.inf, 4.0, math.nan]) == Score(4.0, 1)
    assert mean_score([math.inf]).count == 0 and mean_score([math.inf]).to_dict()["value"] is None
    assert mean_score([0.5, 1.0], bounds=(0.0, 1.0)).interval[1] == 1
    assert mean_score([0.0, 0.5], bounds=(0.0, 1.0)).interval[0] == 0


def test_jackknife_of_a_mean_is_the_normal_interval():
    values = np.random.default_rng(0).normal(size=400)
    score = jackknife_score(np.mean, values, num_groups=400)
    expected = mean_score(values)
    assert score.value == pytest.approx(expected.value)
    assert score.interval == pytest.approx(expected.interval, abs=1e-6)
    grouped = jackknife_score(np.mean, values)  # 20 groups know the error less well
    assert grouped.interval[1] - grouped.value == pytest.approx(expected.interval[1] - expected.value, rel=0.5)


def test_jackknife_leaves_the_same_rows_out_of_all_sets():
    seen = []

    def figure(left, right):
        seen.append((left.tolist(), right.tolist()))
        return 0.0

    jackknife_score(figure, np.arange(4), np.arange(4) * 10, num_groups=4)
    assert seen[0] == ([0, 1, 2, 3], [0, 10, 20, 30])
    assert seen[1:] == [
        ([i for i in range(4) if i != out], [10 * i for i in range(4) if i != out]) for out in range(4)
    ]
    assert jackknife_score(figure, np.arange(2), np.arange(9)).interval is None


def test_score_as_plain_values():
    values = Score(np.float64(0.5), 3, (math.nan, 1.0), 0.25).to_dict()
    assert values == {"value": 0.5, "count": 3, "interval": [None, 1.0], "chance": 0.25}
    assert Score(1.0, 1).to_dict()["interval"] is None


def test_a_mean_of_scores_gives_each_group_the_same_weight():
    mean = mean_of_scores([Score(0.2, 10, (0.1, 0.3), 0.5), Score(0.8, 1000, (0.7, 0.9), 0.1)])
    assert mean.value == pytest.approx(0.5) and mean.count == 1010 and mean.chance == pytest.approx(0.3)
    assert mean.interval == pytest.approx((0.5 - 0.1 / 2**0.5, 0.5 + 0.1 / 2**0.5))
    assert mean_of_scores([Score(1.0, 1), Score(0.0, 1, (0.0, 0.0), 0.1)]) == Score(0.5, 2)
    for outcome in (True, False):  # shares stay shares
        low, high = mean_of_scores([share_score([outcome] * count) for count in (8, 20, 30)]).interval
        assert 0 <= low < high <= 1 and outcome in (low, high)
    rng = np.random.default_rng(0)  # 95 % of intervals hold the true mean
    held = 0
    for _ in range(400):
        groups = [share_score(rng.random(50) < share) for share in (0.3, 0.5, 0.7)]
        low, high = mean_of_scores(groups).interval
        held += low <= 0.5 <= high
    assert 0.92 < held / 400 < 0.98
