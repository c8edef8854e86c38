# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Two sets of features compared as distributions: Fréchet distance (Heusel et al. 2017) and improved precision and
recall (Kynkäänniemi et al. 2019).

The features come from any model. A value is comparable only together with the feature model, its preprocessing and
the number of samples, which results therefore name.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .intervals import NUM_GROUPS, Score, jackknife_interval, jackknife_score
from .processes import ALONE, Processes


def frechet_distance(features: np.ndarray, references: np.ndarray) -> float:
    """
    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2) of the normal distributions that fit two sets of features.

    With A^T A = C, the last trace is the sum of the singular values of A1 A2^T, so no square root of a large, nearly
    singular matrix is taken: fewer samples than channels do no harm to the arithmetic. (They do make the value too
    large: compare only sets of the same size.)

    Args:
        features, references: float [N, channels] and [M, channels], N and M at least 2.

    Raises:
        ValueError: for other shapes, or values that are not finite.
    """
    features, references = _checked(features, references, least=2)
    mean, reference_mean = features.mean(axis=0), references.mean(axis=0)
    factor, reference_factor = _factor(features, mean), _factor(references, reference_mean)
    mixed = np.linalg.svd(factor @ reference_factor.T, compute_uv=False).sum()
    value = ((mean - reference_mean) ** 2).sum() + (factor**2).sum() + (reference_factor**2).sum() - 2 * mixed
    return max(0.0, float(value))  # rounding may leave -1e-15 for equal sets


def _factor(values: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """A [min(N, channels), channels] with A^T A = the sample covariance."""
    return np.linalg.qr((values - mean) / np.sqrt(len(values) - 1), mode="r")


@dataclass
class FeatureSums:
    """Sums over features, float64: their number, `total` [channels] and `products` [channels, channels], the sum of
    x x^T. They add up over parts of a set and over processes, whatever the number of features."""

    count: int
    total: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, processes: Processes = ALONE) -> "FeatureSums":
        """Of this process' features [N, channels], N may be 0, and those of the others."""
        features = np.asarray(features, dtype=np.float64)
        own = np.array([len(features)]), features.sum(axis=0), features.T @ features
        count, total, products = map(processes.sum, own)
        return cls(int(count[0]), total, products)

    def __sub__(self, part: "FeatureSums") -> "FeatureSums":
        return FeatureSums(self.count - part.count, self.total - part.total, self.products - part.products)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [channels] and sample covariance [channels, channels]."""
        mean = self.total / self.count
        return mean, (self.products - self.count * np.outer(mean, mean)) / (self.count - 1)


Moments = tuple[np.ndarray, np.ndarray]  # mean [channels] and covariance [channels, channels]


def frechet_of_moments(moments: Moments, references: Moments) -> float:
    """[`frechet_distance`] of two normal distributions.

    Raises:
        ValueError: when they are not finite, such as the covariance of a single picture.
    """
    return _distances({"": moments}, references)[""]


def _distances(sets: Mapping[str, Moments], references: Moments) -> dict[str, float]:
    """The distances of several normal distributions to one, whose root is taken once."""
    if not all(np.isfinite(part).all() for moments in (*sets.values(), references) for part in moments):
        raise ValueError("features of pictures must be finite, and of two pictures or more.")
    reference_mean, reference_covariance = references
    reference_root, distances = _root(reference_covariance), {}
    for name, (mean, covariance) in sets.items():
        mixed = np.linalg.svd(_root(covariance) @ reference_root.T, compute_uv=False).sum()
        apart = ((mean - reference_mean) ** 2).sum()
        distances[name] = max(0.0, float(apart + np.trace(covariance) + np.trace(reference_covariance) - 2 * mixed))
    return distances


def _root(covariance: np.ndarray) -> np.ndarray:
    """A [rank, channels] with A^T A = a covariance; what rounding makes of eigenvalues of zero is left out."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > np.finfo(np.float64).eps * len(values) * values.max(initial=0)
    return np.sqrt(values[kept])[:, None] * vectors.T[kept]


def frechet_scores(
    sets: Mapping[str, Mapping[int, np.ndarray]], references: Mapping[int, np.ndarray], processes: Processes = ALONE
) -> dict[str, Score]:
    """
    The Fréchet distances of sets to one, with a jackknife of the groups i modulo 23; none of sets of two pictures or
    fewer.

    Features of few pictures are brought together. Of more pictures than channels, only sums are, and the processes
    share the groups.

    Args:
        sets, references: this process' features [channels], by the number of the picture.
    """
    channels = max(processes.gather(max((len(one) for one in references.values()), default=0)))
    counts = {name: sum(processes.gather(len(own))) for name, own in sets.items()}
    num_references = sum(processes.gather(len(references)))
    chosen = {name: own for name, own in sets.items() if counts[name] > 2}
    if min([num_references, *(counts[name] for name in chosen)]) <= channels:
        wanted = processes.merge(references)
        return {
            name: jackknife_score(frechet_distance, np.stack(processes.merge(own)), np.stack(wanted))
            for name, own in chosen.items()
        }

    def sums(own: Mapping[int, np.ndarray], group: int | None = None) -> FeatureSums:
        part = [one for number, one in own.items() if group is None or number % NUM_GROUPS == group]
        return FeatureSums.of(np.array(part).reshape(len(part), channels), processes)

    def distances(parts: Mapping[str | None, FeatureSums]) -> dict[str, float]:
        moments = {name: one.moments() for name, one in parts.items()}
        return _distances({name: moments[name] for name in chosen}, moments[None])

    everything = {None: references, **chosen}
    whole = {name: sums(own) for name, own in everything.items()}
    values, without = distances(whole), {}
    for start in range(0, NUM_GROUPS, processes.count):  # a group for each process at once
        mine = None
        for group in range(start, min(start + processes.count, NUM_GROUPS)):
            parts = {name: whole[name] - sums(own, group) for name, own in everything.items()}
            mine = parts if group - start == processes.index else mine
        if mine is not None:
            without[start + processes.index] = distances(mine)
    left_out = processes.merge(without)
    return {
        name: Score(value, counts[name], jackknife_interval(value, [one[name] for one in left_out]))
        for name, value in values.items()
    }


def frechet_score(features: np.ndarray, references: np.ndarray) -> Score:
    """[`frechet_scores`] of one set, features [N, channels] that lie in this process."""
    return frechet_scores({"": dict(enumerate(features))}, dict(enumerate(references)))[""]


def precision_recall(features: np.ndarray, references: np.ndarray, num_neighbours: int = 3) -> tuple[float, float]:
    """
    Improved precision and recall. A sample lies in a set's manifold when it is within the distance of some member of
    the set to that member's k-th nearest other member.

    Args:
        features, references: float [N, channels] and [M, channels], both longer than `num_neighbours`.
        num_neighbours: k.

    Returns:
        The share of `features` inside the manifold of `references`, and of `references` inside that of `features`.

    Raises:
        ValueError: for other shapes, values that are not finite, or sets that are too small.
    """
    inside = precision_recall_outcomes(features, references, num_neighbours)
    return float(inside[0].mean()), float(inside[1].mean())


def precision_recall_outcomes(
    features: np.ndarray, references: np.ndarray, num_neighbours: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """As `precision_recall`, bool [N] and [M]: which samples are inside."""
    if num_neighbours < 1:
        raise ValueError(f"`num_neighbours` must be 1 or more, got {num_neighbours}.")
    features, references = _checked(features, references, least=num_neighbours + 1)
    return _inside(features, references, num_neighbours), _inside(references, features, num_neighbours)


def _inside(samples: np.ndarray, manifold: np.ndarray, num_neighbours: int, block: int = 1024) -> np.ndarray:
    """bool [N]. In blocks of rows, so that memory does not grow with the square of the set."""
    inside = np.zeros(len(samples), dtype=bool)
    for start in range(0, len(manifold), block):
        part = manifold[start : start + block]
        # Place 0 of the sorted distances is the member itself.
        radii = np.partition(_squared_distances(part, manifold), num_neighbours, axis=1)[:, num_neighbours]
        inside |= (_squared_distances(samples, part) <= radii).any(axis=1)
    return inside


def _squared_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """[N, M]; never negative."""
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)
    return (squares - 2 * left @ right.T).clip(min=0)


def _checked(features, references, least: int) -> list[np.ndarray]:
    arrays = []
    for name, values in (("features", features), ("references", references)):
        values = np.asarray(values, dtype=np.float64)
        if values.ndim != 2 or len(values) < least:
            raise ValueError(f"`{name}` must be [N, channels] with N of {least} or more, got {list(values.shape)}.")
        if not np.isfinite(values).all():
            raise ValueError(f"`{name}` must be finite, but holds nan or infinity.")
        arrays.append(values)
    if arrays[0].shape[1] != arrays[1].shape[1]:
        raise ValueError(
            f"`features` have {arrays[0].shape[1]} channels and `references` {arrays[1].shape[1]}: they must come "
            "from the same feature model."
        )
    return arrays
