# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Scores of short answers: exact match and F1 of the words, as in SQuAD, except that articles are kept; and of texts
that were read from pictures."""

import re
from collections import Counter


def normalize_answer(text: str) -> str:
    """Case-folded, punctuation as spaces, single spaces."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def exact_match(answer: str, reference: str) -> bool:
    """Whether the two are equal after `normalize_answer`."""
    return normalize_answer(answer) == normalize_answer(reference)


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of the share of the answer's words that are the reference's, and the other way round. A word
    counts as often as it stands in both. Two empty texts agree."""
    words, wanted = normalize_answer(answer).split(), normalize_answer(reference).split()
    if not words or not wanted:
        return float(words == wanted)
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / (len(words) + len(wanted))


def character_accuracy(found: str, wanted: str) -> float:
    """1 - edit distance / length of the longer text, where neither case nor white space counts; 1 for equal texts."""
    left, right = ("".join(text.casefold().split()) for text in (found, wanted))
    if not left or not right:
        return float(left == right)
    row = list(range(len(right) + 1))  # edit distances of the first characters of `left` to all starts of `right`
    for place, character in enumerate(left, 1):
        diagonal, row[0] = row[0], place
        for index, other in enumerate(right, 1):
            diagonal, row[index] = row[index], min(row[index] + 1, row[index - 1] + 1, diagonal + (character != other))
    return 1 - row[-1] / max(len(left), len(right))
