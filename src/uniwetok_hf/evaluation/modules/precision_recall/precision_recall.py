# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Improved precision and recall, as a module of `evaluate`."""

import datasets
import evaluate

from uniwetok_hf.evaluation.distributions import precision_recall_outcomes
from uniwetok_hf.evaluation.intervals import share_score


DESCRIPTION = """\
Share of the predictions inside the manifold of the references (precision), and the other way round (recall).
"""
CITATION = """\
Kynkäänniemi et al., Improved precision and recall metric for assessing generative models, 2019.
"""
INPUTS = """
Args:
    predictions: features [N, channels].
    reference_features: features [M, channels] of the same feature model; M may differ.
    num_neighbours: k, 3 by default.
Returns:
    precision, recall, their counts and 95 % intervals.
"""


class PrecisionRecall(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.List(datasets.Value("float64"))}),
        )

    def _compute(self, predictions, reference_features, num_neighbours=3):
        inside = precision_recall_outcomes(predictions, reference_features, num_neighbours)
        precision, recall = (share_score(outcomes) for outcomes in inside)
        return {
            "precision": precision.value,
            "recall": recall.value,
            "precision_count": precision.count,
            "recall_count": recall.count,
            "precision_interval": list(precision.interval),
            "recall_interval": list(recall.interval),
        }
