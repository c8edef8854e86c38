# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Zero-shot accuracy, as a module of `evaluate`."""

import datasets
import evaluate
import numpy as np

from uniwetok_hf.evaluation.choices import cosines, top_k_outcomes
from uniwetok_hf.evaluation.intervals import share_score
from uniwetok_hf.evaluation.modules import result


DESCRIPTION = """\
How often the right class is among the k whose texts are nearest to a picture, in the space of a dual encoder.
"""
CITATION = """\
Radford et al., Learning transferable visual models from natural language supervision, 2021.
"""
INPUTS = """
Args:
    predictions: embeddings [N, channels] of pictures.
    references: numbers of their classes.
    class_embeddings: embeddings [classes, channels] of the classes' texts.
    k: 1 by default.
Returns:
    accuracy, count, interval (95 %), chance.
"""


class ZeroShot(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, class_embeddings, k=1):
        similarities = cosines(np.asarray(predictions), np.asarray(class_embeddings))
        outcomes = top_k_outcomes(similarities, np.asarray(references), k)
        return result("accuracy", share_score(outcomes, min(1.0, k / len(class_embeddings))))
