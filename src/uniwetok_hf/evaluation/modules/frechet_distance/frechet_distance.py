# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Fréchet distance of two sets of features, as a module of `evaluate`."""

import datasets
import evaluate
import numpy as np

from uniwetok_hf.evaluation.distributions import frechet_distance
from uniwetok_hf.evaluation.intervals import jackknife_score
from uniwetok_hf.evaluation.modules import result


DESCRIPTION = """\
Fréchet distance of the normal distributions that fit two sets of features; it says as much as the feature model does.
"""
CITATION = """\
Heusel et al., GANs trained by a two time-scale update rule converge to a local Nash equilibrium, 2017.
"""
INPUTS = """
Args:
    predictions: features [N, channels].
    reference_features: features [M, channels] of the same feature model; M may differ.
Returns:
    frechet_distance, count (N), interval (95 %, jackknife).
"""


class FrechetDistance(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.List(datasets.Value("float64"))}),
        )

    def _compute(self, predictions, reference_features):
        score = jackknife_score(frechet_distance, np.asarray(predictions), np.asarray(reference_features))
        return result("frechet_distance", score)
