# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Linear probe: how much of a label a linear classifier reads from frozen features.

Multinomial logistic regression with an L2 penalty on standardized features, fitted to the end by L-BFGS on the whole
training set: the solution is unique, so there is no seed and no learning rate to choose.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F


def linear_probe_outcomes(
    features: np.ndarray,
    labels: Sequence,
    test_features: np.ndarray,
    test_labels: Sequence,
    l2: float = 1e-3,
    max_steps: int = 500,
) -> np.ndarray:
    """
    Which test rows a linear probe gets right.

    Args:
        features, test_features: float [N, channels] and [M, channels].
        labels, test_labels: one per row, of any kind that can be compared. A test label that was never trained on is
            wrong whatever the probe says.
        l2: weight of |W|^2 / 2 beside the mean cross-entropy; the bias is free.
        max_steps: steps of L-BFGS at most.

    Returns:
        bool [M].

    Raises:
        ValueError: for other shapes or numbers of rows, or only one label to learn.
    """
    features, test_features = np.asarray(features, np.float64), np.asarray(test_features, np.float64)
    for name, rows, tags in (("features", features, labels), ("test_features", test_features, test_labels)):
        if rows.ndim != 2 or len(rows) == 0 or len(rows) != len(tags):
            raise ValueError(
                f"`{name}` must be [N, channels] with one label per row, got {list(rows.shape)} and {len(tags)}."
            )
    if features.shape[1] != test_features.shape[1]:
        raise ValueError(f"`test_features` have {test_features.shape[1]} channels, `features` {features.shape[1]}.")
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ValueError(f"`labels` must hold 2 or more different labels, got only {classes[0]!r}.")
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale < 1e-9] = 1.0  # a channel that never changes stays 0
    index = {label: position for position, label in enumerate(classes)}
    targets = torch.tensor([index[label] for label in labels])
    weight, bias = _fit(torch.from_numpy((features - mean) / scale), targets, len(classes), l2, max_steps)
    logits = torch.from_numpy((test_features - mean) / scale) @ weight + bias
    predicted = [classes[position] for position in logits.argmax(dim=1).tolist()]
    return np.array([guess == label for guess, label in zip(predicted, test_labels, strict=True)], dtype=bool)


def _fit(rows: torch.Tensor, targets: torch.Tensor, num_classes: int, l2: float, max_steps: int):
    """Weights [channels, classes] and biases [classes] in float64, from zero."""
    weight = torch.zeros(rows.shape[1], num_classes, dtype=rows.dtype, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=rows.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=max_steps, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(rows @ weight + bias, targets) + l2 / 2 * (weight**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()
