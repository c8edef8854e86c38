# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Statistics of the bits of codes, as a module of `evaluate`."""

import datasets
import evaluate
import numpy as np
import torch

from uniwetok_hf.evaluation.bits import bit_statistics


DESCRIPTION = """\
Usage, entropy, stuck bits, largest correlation and compressed size of binary codes.
"""
CITATION = """\
Zhuang et al., UniWeTok: an unified binary tokenizer with codebook size 2^128, 2026.
"""
INPUTS = """
Args:
    predictions: tokens [N, bits] of -1 and +1; those of a picture follow each other.
Returns:
    what uniwetok_hf.evaluation.bits.BitStatistics.compute returns; a "picture" is a token here.
"""


class CodeStatistics(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.List(datasets.Value("int8"))}),
        )

    def _compute(self, predictions):
        return bit_statistics(torch.tensor(np.asarray(predictions), dtype=torch.float32)[:, :, None, None])
