# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Text-image R-precision, as a module of `evaluate`."""

import datasets
import evaluate
import numpy as np
import torch

from uniwetok_hf.evaluation.choices import chance_of, draw_rivals, r_precision_outcomes
from uniwetok_hf.evaluation.intervals import share_score
from uniwetok_hf.evaluation.modules import result


DESCRIPTION = """\
How often a picture is nearer to its own text than to the texts of others, in the space of a dual encoder.
"""
CITATION = """\
Xu et al., AttnGAN: fine-grained text to image generation with attentional generative adversarial networks, 2018.
"""
INPUTS = """
Args:
    predictions: embeddings [N, channels] of pictures.
    references: embeddings [N, channels] of their texts.
    num_rivals: other texts that each picture is compared with, 31 by default.
    seed: of their choice.
Returns:
    r_precision, count, interval (95 %), chance.
"""


class RPrecision(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float64")),
                    "references": datasets.List(datasets.Value("float64")),
                }
            ),
        )

    def _compute(self, predictions, references, num_rivals=31, seed=0):
        generator = torch.Generator().manual_seed(seed)
        rivals = draw_rivals([tuple(text) for text in references], num_rivals, generator)
        outcomes = r_precision_outcomes(np.asarray(predictions), np.asarray(references), rivals)
        return result("r_precision", share_score(outcomes, chance_of(rivals)))
