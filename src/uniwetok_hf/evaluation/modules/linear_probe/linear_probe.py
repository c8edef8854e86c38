# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Accuracy of a linear probe, as a module of `evaluate`."""

import datasets
import evaluate
import numpy as np

from uniwetok_hf.evaluation.intervals import share_score
from uniwetok_hf.evaluation.modules import result
from uniwetok_hf.evaluation.probe import linear_probe_outcomes


DESCRIPTION = """\
Accuracy of a logistic regression from features to labels, fitted on a training split.
"""
CITATION = """\
Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016.
"""
INPUTS = """
Args:
    predictions: features [N, channels] of the test split.
    references: labels of the test split.
    train_features: features [M, channels] of the training split.
    train_labels: labels of the training split.
    l2: weight of the penalty, 1e-3 by default.
Returns:
    accuracy, count, interval (95 %).
"""


class LinearProbe(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float64")), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, train_features, train_labels, l2=1e-3):
        labels = [str(label) for label in train_labels]
        outcomes = linear_probe_outcomes(train_features, labels, np.asarray(predictions), references, l2)
        return result("accuracy", share_score(outcomes))
