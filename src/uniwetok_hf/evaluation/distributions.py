# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Two sets of features compared as distributions: Fréchet distance (Heusel et al. 2017) and improved precision and
recall (Kynkäänniemi et al. 2019).

The features come from any model. A value is comparable only together with the feature model, its preprocessing and
the number of samples, which results therefore name.
"""

import numpy as np


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
