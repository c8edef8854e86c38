# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Exact match and word F1 of short answers, as a module of `evaluate`."""

import datasets
import evaluate

from uniwetok_hf.evaluation.intervals import mean_score, share_score
from uniwetok_hf.evaluation.words import exact_match, token_f1


DESCRIPTION = """\
Share of answers that are the reference but for case and punctuation, and mean F1 of their words.
"""
CITATION = """\
Rajpurkar et al., SQuAD: 100,000+ questions for machine comprehension of text, 2016.
"""
INPUTS = """
Args:
    predictions: answers.
    references: right answers.
Returns:
    exact_match, f1, count, and their 95 % intervals.
"""


class AnswerScores(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        pairs = list(zip(predictions, references, strict=True))
        exact = share_score(exact_match(*pair) for pair in pairs)
        f1 = mean_score((token_f1(*pair) for pair in pairs), largest=1.0)
        return {
            "exact_match": exact.value,
            "f1": f1.value,
            "count": exact.count,
            "exact_match_interval": list(exact.interval),
            "f1_interval": list(f1.interval) if f1.interval else None,
        }
