# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""`evaluate captioning`: how well questions about pictures are answered: exact match and F1 of the words, by kind of
question.

The level of chance is the score of the most common right answer of each kind, given every time.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import length_hint

from PIL import Image
from tqdm.auto import tqdm

from ..pipelines.writing import generate_text, question_texts
from .intervals import Score, mean_score, share_score
from .processes import ALONE, Processes
from .prompts import check_question
from .reports import Report, score_rows
from .rows import batched, own_batches
from .words import exact_match, normalize_answer, token_f1


def evaluate_captioning(
    mllm,
    processor,
    rows: Iterable[Mapping],
    image_column: str = "image",
    by: str | None = None,
    max_new_tokens: int = 40,
    batch_size: int = 16,
    processes: Processes = ALONE,
) -> Report:
    """
    Answers the questions of all rows and compares the answers with the right ones.

    Args:
        mllm, processor: a [`UniWeTokForCausalLM`] and its [`UniWeTokProcessor`].
        rows: with a PIL picture in `image_column`, `question` and `answer`, and the column `by` ([`PictureRows`], of
            which rows are left out whose question or picture the model can't read).
        by: column of the kind of question: its values have a row of the table each, beside the row of all questions.
        processes: those that share the questions, batch by batch.

    Returns:
        The report, the same in all processes.

    Raises:
        ValueError: when there are no questions, or an answer is neither text nor a number.
    """
    report = Report("captioning")
    found = {}

    def check(row: Mapping) -> None:
        check_question(mllm, processor, row[image_column], row["question"], max_new_tokens)

    with processes.bar(length_hint(rows), "answering") as bar:
        for number, part in own_batches(rows, batch_size, processes, check):
            questions, references = [row["question"] for row in part], [reference_of(row) for row in part]
            kinds = [str(row[by]) if by else "" for row in part]
            answers = answer_batch(mllm, processor, [row[image_column] for row in part], questions, max_new_tokens)
            found[number] = list(zip(answers, references, kinds, strict=True))
            bar.update(batch_size)
    answered = list(chain.from_iterable(processes.merge(found)))
    if not answered:
        raise ValueError("`rows` holds no question whose picture can be read.")
    answers, references, kinds = zip(*answered, strict=True)
    usual = most_common_answers(references, kinds)

    def score(chosen: Sequence[int]) -> dict[str, Score]:
        given = [(answers[index], references[index]) for index in chosen]
        blind = [(usual[kinds[index]], references[index]) for index in chosen]
        chance = {metric: sum(metric(*pair) for pair in blind) / len(blind) for metric in (exact_match, token_f1)}
        return {
            "exact_match": share_score((exact_match(*pair) for pair in given), chance[exact_match]),
            "f1": mean_score((token_f1(*pair) for pair in given), chance[token_f1], bounds=(0.0, 1.0)),
        }

    report.rows = score_rows({"what": "model"}, kinds, score, for_card=True)
    report.protocol = {
        "answers": f"the most likely ones, of at most {max_new_tokens} tokens",
        "compared": "case and punctuation do not count",
        "chance": "the most common right answer of each kind, given every time",
    }
    return report


def reference_of(row: Mapping) -> str:
    """The right answer of a row, as text.

    Raises:
        ValueError: when it is neither text nor a number.
    """
    answer = row["answer"]
    if not isinstance(answer, str | int | float):
        raise ValueError(f"`answer` must be text or a number, one for each question, got {answer!r:.100}.")
    return str(answer)


def answer_all(
    mllm,
    processor,
    pictures: Sequence[Image.Image],
    questions: Sequence[str],
    max_new_tokens: int = 40,
    batch_size: int = 16,
) -> list[str]:
    """The model's most likely answers to one question about each picture, in one line each."""
    answers = []
    with tqdm(total=len(questions), desc="answering", disable=None) as bar:
        for part in batched(zip(pictures, questions, strict=True), batch_size):
            answers += answer_batch(mllm, processor, *zip(*part, strict=True), max_new_tokens)
            bar.update(len(part))
    return answers


def answer_batch(
    mllm, processor, pictures: Sequence[Image.Image], questions: Sequence[str], max_new_tokens: int = 40
) -> list[str]:
    """As [`answer_all`], all at once."""
    if not questions:
        return []
    texts = question_texts(processor, list(questions))
    return generate_text(mllm, processor, texts, list(pictures), max_new_tokens, argument="question")


def most_common_answers(references: Sequence[str], kinds: Sequence[str]) -> dict[str, str]:
    """The most common right answer to each kind of question, normalized."""
    counts: dict[str, Counter] = {}
    for reference, kind in zip(references, kinds, strict=True):
        counts.setdefault(kind, Counter())[normalize_answer(reference)] += 1
    return {kind: answers.most_common(1)[0][0] for kind, answers in counts.items()}
