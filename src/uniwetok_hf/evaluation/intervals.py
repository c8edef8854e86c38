# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Scores: a value with its number of samples, the level of chance and a 95 % interval.

- A share (right or wrong): Wilson's interval, which stays inside [0, 1] and holds for few samples.
- A mean: normal, mean +- 1.96 standard errors.
- A value of whole sets (Fréchet distance): a jackknife that leaves out one of 23 groups at a time. A bootstrap would
  not do: it repeats samples, and repeated samples look like a narrower distribution.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np


Z_95 = 1.959964
NUM_GROUPS = 23  # of a jackknife; a prime, so that classes that take turns lie in all of them


@dataclass(frozen=True)
class Score:
    """`value` over `count` samples, its 95 % `interval`, and what pure `chance` would reach; None where there is no
    such thing."""

    value: float
    count: int
    interval: tuple[float, float] | None = None
    chance: float | None = None

    def to_dict(self) -> dict:
        """Plain values, infinite and undefined ones as None: JSON has no word for them."""
        values = asdict(self)
        if self.interval is not None:
            values["interval"] = [_finite(end) for end in self.interval]
        return values | {"value": _finite(self.value)}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def wilson_interval(successes: int, count: int, z: float = Z_95) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927).

    Raises:
        ValueError: when `count` is not positive, or `successes` is not between 0 and `count`.
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"`successes` must be between 0 and `count`, which is positive, got {successes} of {count}.")
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def share_score(outcomes: Iterable[bool], chance: float | None = None) -> Score:
    """The share of true outcomes."""
    outcomes = [bool(outcome) for outcome in outcomes]
    right = sum(outcomes)
    interval = wilson_interval(right, len(outcomes))
    return Score(right / len(outcomes), len(outcomes), interval, chance)


def mean_score(
    values: Iterable[float], chance: float | None = None, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Score:
    """The mean of a value that each sample has, and that is never outside `bounds`. Infinite values (PSNR of
    identical pictures) are left out of the mean and of `count`; a single value has no interval."""
    finite = np.asarray([value for value in values if math.isfinite(value)], dtype=np.float64)
    if len(finite) == 0:
        return Score(math.nan, 0, None, chance)
    mean = float(finite.mean())
    if len(finite) == 1:
        return Score(mean, 1, None, chance)
    half = Z_95 * float(finite.std(ddof=1)) / math.sqrt(len(finite))
    return Score(mean, len(finite), (max(mean - half, bounds[0]), min(mean + half, bounds[1])), chance)


def mean_of_scores(scores: Sequence[Score]) -> Score:
    """The mean of the scores of several groups, each with the same weight whatever its number of samples. The interval
    takes the groups as independent: below and above the mean it is the root of the summed squares of what their own
    intervals reach below and above them, so that shares stay between 0 and 1."""
    values = [score.value for score in scores]
    chances = [score.chance for score in scores if score.chance is not None]
    mean, count = float(np.mean(values)), sum(score.count for score in scores)
    interval = None
    if all(score.interval is not None for score in scores):
        below = math.hypot(*(score.value - score.interval[0] for score in scores)) / len(scores)
        above = math.hypot(*(score.interval[1] - score.value for score in scores)) / len(scores)
        interval = (mean - below, mean + above)
    return Score(mean, count, interval, float(np.mean(chances)) if len(chances) == len(scores) else None)


def jackknife_score(
    statistic: Callable[..., float], *samples: np.ndarray, chance: float | None = None, num_groups: int = NUM_GROUPS
) -> Score:
    """A statistic of whole sets, `statistic(*samples)`, with a grouped jackknife over the first axis of all of them.

    Rows i, i + g, i + 2g, ... are left out together (of every set: pairs stay pairs), g = `num_groups` or the size of
    the smallest set. `count` is the size of the first set.
    """
    value = float(statistic(*samples))
    num_groups = min(num_groups, *(len(sample) for sample in samples))
    if num_groups < 3:
        return Score(value, len(samples[0]), None, chance)
    kept = [[_without(sample, group, num_groups) for sample in samples] for group in range(num_groups)]
    return Score(value, len(samples[0]), jackknife_interval(value, [statistic(*sets) for sets in kept]), chance)


def jackknife_interval(value: float, without: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a statistic, from its values without each of the groups."""
    values = np.asarray(without, dtype=np.float64)
    error = math.sqrt((len(values) - 1) / len(values) * float(((values - values.mean()) ** 2).sum()))
    return value - Z_95 * error, value + Z_95 * error


def _without(sample: Sequence | np.ndarray, group: int, num_groups: int) -> np.ndarray:
    return np.asarray(sample)[np.arange(len(sample)) % num_groups != group]
