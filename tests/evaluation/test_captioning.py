import pytest
from datasets import load_from_disk
from PIL import Image
from tiny_models import build_tiny_mllm, build_tiny_processor

from uniwetok_hf.evaluation.captioning import (
    EMOJI_QUESTIONS,
    Question,
    answer_all,
    questions_of_emoji,
    score_answers,
)


PICTURE = Image.new("RGB", (64, 64), "red")


def question(answer, kind=""):
    return Question(PICTURE, "what?", answer, kind)


def test_scores_by_kind_and_chance_by_hand():
    questions = [question(name, "name") for name in ("red heart", "cat", "Cat")] + [question("flat", "style")]
    rows = score_answers(["heart", "CAT.", "dog", "flat"], questions)
    assert [row.labels["of"] for row in rows] == ["all", "name", "style"]
    everything, name, style = (row.scores for row in rows)
    assert everything["exact_match"].value == 0.5 and name["exact_match"].value == pytest.approx(1 / 3)
    assert name["exact_match"].chance == pytest.approx(2 / 3)  # "cat" every time
    assert everything["exact_match"].chance == 0.75
    assert name["f1"].value == pytest.approx((2 / 3 + 1) / 3) and style["f1"].value == 1
    assert style["exact_match"].count == 1 and everything["exact_match"].count == 4
    assert [row.for_card for row in rows] == [True, False, False]


def test_one_kind_has_one_row():
    (row,) = score_answers(["cat"], [question("cat")])
    assert row.labels == {"what": "model"} and row.for_card


def test_one_answer_a_question():
    for answers, questions in (([], []), (["a"], [question("a"), question("b")])):
        with pytest.raises(ValueError, match="one for each"):
            score_answers(answers, questions)


def test_emoji_are_asked_what_they_have_an_answer_to(fixtures):
    rows = load_from_disk(str(fixtures / "emoji" / "pictures"))["train"]
    questions = questions_of_emoji(rows)
    assert len(questions) == 3 * len(rows) + sum(tone != "" for tone in rows["tone"])
    assert {q.kind: q.question for q in questions} == EMOJI_QUESTIONS
    assert questions[0].answer == rows[0]["name"]


def test_answers_do_not_depend_on_the_batch():
    mllm, processor = build_tiny_mllm(), build_tiny_processor()
    texts = ["what?", "a much longer question than the first?", "style?"]
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "white", "blue")]
    questions = [Question(picture, text, "x") for picture, text in zip(pictures, texts, strict=True)]
    together = answer_all(mllm, processor, questions, max_new_tokens=6)
    apart = answer_all(mllm, processor, questions, max_new_tokens=6, batch_size=1)
    assert together == apart and len(together) == 3
    assert all("\n" not in answer for answer in together)
