# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Structural similarity, as a module of `evaluate`."""

import datasets
import evaluate

from uniwetok_hf.evaluation.intervals import mean_score
from uniwetok_hf.evaluation.metrics import ssim
from uniwetok_hf.evaluation.modules import as_arrays, result


DESCRIPTION = """\
Structural similarity, mean over pictures.
"""
CITATION = """\
Wang et al., Image quality assessment: from error visibility to structural similarity, 2004.
"""
INPUTS = """
Args:
    predictions: 8-bit pictures, PIL or uint8 arrays [H, W, 3] or [H, W], of any sizes.
    references: what they should be, of the same sizes.
Returns:
    ssim, count (pictures, identical ones left out where the value is infinite), interval (95 %).
"""


class SSIM(evaluate.Metric):
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

    def _compute(self, predictions, references):
        values = ssim(predictions, references)
        return result("ssim", mean_score(values))
