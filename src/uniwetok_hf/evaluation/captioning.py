# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""How well questions about pictures are answered: exact match and F1 of the words, by kind of question.

The level of chance is what the most common right answer of each kind would score if it were given every time.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from tqdm.auto import tqdm

from ..pipelines.writing import write_about
from .intervals import mean_score, share_score
from .reports import Row
from .rows import batched
from .words import exact_match, normalize_answer, token_f1


# What is asked about the pictures of `uniwetok data emoji`: column and question.
EMOJI_QUESTIONS = {
    "name": "what is this?",
    "style": "which style is this?",
    "group": "which group does it belong to?",
    "tone": "which skin tone is this?",
}


@dataclass
class Question:
    """A `question` about a `picture`, its right `answer`, and the `kind` that results are grouped by."""

    picture: Image.Image
    question: str
    answer: str
    kind: str = ""


def questions_of_emoji(rows: Iterable[Mapping]) -> list[Question]:
    """All of `EMOJI_QUESTIONS` that each row has an answer to."""
    return [
        Question(row["image"], question, row[column], column)
        for row in rows
        for column, question in EMOJI_QUESTIONS.items()
        if row[column]
    ]


def answer_all(
    mllm, processor, questions: Sequence[Question], max_new_tokens: int = 40, batch_size: int = 16
) -> list[str]:
    """The model's most likely answers, in one line each."""
    answers = []
    with tqdm(total=len(questions), desc="answering", disable=None) as bar:
        for part in batched(questions, batch_size):
            contents = [[{"type": "image"}, {"type": "text", "text": one.question}] for one in part]
            messages = [[{"role": "user", "content": content}] for content in contents]
            texts = processor.apply_chat_template(messages, add_generation_prompt=True)
            answers += write_about(mllm, processor, texts, [one.picture for one in part], max_new_tokens)
            bar.update(len(part))
    return answers


def score_answers(answers: Sequence[str], questions: Sequence[Question]) -> list[Row]:
    """
    Rows of the table: all answers, then those to each kind of question.

    Raises:
        ValueError: when there are no questions, or not one answer each.
    """
    if not questions or len(answers) != len(questions):
        raise ValueError(f"`answers` must be one for each of {len(questions)} questions, got {len(answers)}.")
    kinds = sorted({question.kind for question in questions})
    usual = {kind: _most_common([q.answer for q in questions if q.kind == kind]) for kind in kinds}
    pairs = [
        (question.kind, answer, usual[question.kind], question.answer)
        for answer, question in zip(answers, questions, strict=True)
    ]
    if len(kinds) == 1:
        return [_row({"what": "model"}, pairs)]
    rows = [_row({"what": "model", "of": "all"}, pairs)]
    return rows + [_row({"what": "model", "of": kind}, [p for p in pairs if p[0] == kind]) for kind in kinds]


def _most_common(answers: Sequence[str]) -> str:
    return Counter(map(normalize_answer, answers)).most_common(1)[0][0]


def _row(labels: dict[str, str], pairs: Sequence[tuple[str, str, str, str]]) -> Row:
    exact, f1 = (
        {name: [metric(given, right) for given, right in found] for name, found in _sides(pairs).items()}
        for metric in (exact_match, token_f1)
    )
    chance = {"exact": sum(exact["usual"]) / len(pairs), "f1": sum(f1["usual"]) / len(pairs)}
    return Row(
        labels,
        {
            "exact_match": share_score(exact["own"], chance["exact"]),
            "f1": mean_score(f1["own"], chance["f1"], largest=1.0),
        },
        for_card=labels.get("of", "all") == "all",
    )


def _sides(pairs: Sequence[tuple[str, str, str, str]]) -> dict[str, list[tuple[str, str]]]:
    """(answer, right answer): the model's own, and the usual one."""
    return {
        "own": [(answer, right) for _, answer, _, right in pairs],
        "usual": [(usual, right) for _, _, usual, right in pairs],
    }
