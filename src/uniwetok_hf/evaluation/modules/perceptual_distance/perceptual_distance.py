# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Distance in the features of a network, as a module of `evaluate`."""

import datasets
import evaluate

from uniwetok_hf.evaluation.intervals import mean_score
from uniwetok_hf.evaluation.metrics import perceptual_distance
from uniwetok_hf.evaluation.modules import as_arrays, result
from uniwetok_hf.evaluation.networks import load_network


DESCRIPTION = """\
Distance in the features of a network, mean over pictures.
"""
CITATION = """\
Zhang et al., The unreasonable effectiveness of deep features as a perceptual metric, 2018.
"""
INPUTS = """
Args:
    predictions: 8-bit pictures, PIL or uint8 arrays [H, W, 3] or [H, W], of any sizes.
    references: what they should be, of the same sizes.
    network: folder or Hub name of a vision model, or a .safetensors file of LPIPS weights (docs/evaluation.md).
Returns:
    perceptual_distance, count (pictures, identical ones left out where the value is infinite), interval (95 %).
"""


class PerceptualDistance(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Adds pictures, which are kept without loss."""
        super().add_batch(predictions=as_arrays(predictions), references=as_arrays(references), **kwargs)

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Adds a pair of pictures."""
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def _compute(self, predictions, references, network):
        values = perceptual_distance(predictions, references, load_network(network))
        return result("perceptual_distance", mean_score(values))
