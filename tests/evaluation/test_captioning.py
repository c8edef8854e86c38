import pytest
from PIL import Image
from tiny_models import build_tiny_mllm, build_tiny_processor

from uniwetok_hf.evaluation import captioning
from uniwetok_hf.evaluation.captioning import answer_all, evaluate_captioning
from uniwetok_hf.evaluation.rows import PictureRows


PICTURE = Image.new("RGB", (64, 64), "red")


def row(answer, kind=""):
    return {"image": PICTURE, "question": "what?", "answer": answer, "kind": kind}


@pytest.fixture
def evaluate(monkeypatch):
    """`evaluate(answers, rows)`: the report of a model that gives these answers."""

    def run(answers, rows, **settings):
        monkeypatch.setattr(captioning, "answer_batch", lambda *args: answers)
        return evaluate_captioning(None, None, rows, **settings)

    return run


def test_scores_by_kind_and_chance_by_hand(evaluate):
    rows = [row(name, "name") for name in ("red heart", "cat", "Cat")] + [row("flat", "style")]
    table = evaluate(["heart", "CAT.", "dog", "flat"], rows, by="kind").rows
    assert [row.labels["of"] for row in table] == ["all", "name", "style"]
    everything, name, style = (row.scores for row in table)
    assert everything["exact_match"].value == 0.5 and name["exact_match"].value == pytest.approx(1 / 3)
    assert name["exact_match"].chance == pytest.approx(2 / 3)  # "cat" every time
    assert everything["exact_match"].chance == 0.75
    assert name["f1"].value == pytest.approx((2 / 3 + 1) / 3) and style["f1"].value == 1
    assert style["exact_match"].count == 1 and everything["exact_match"].count == 4
    assert [row.for_card for row in table] == [True, False, False]


def test_one_kind_has_one_row(evaluate):
    for by in (None, "kind"):
        (only,) = evaluate(["cat"], [row("cat")], by=by).rows
        assert only.labels == {"what": "model"} and only.for_card


def test_right_answers_may_be_numbers(evaluate):
    (only,) = evaluate(["3", "2.5", "four"], [row(3), row(2.5), row(4)]).rows
    assert only.scores["exact_match"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize("answer", [["cat", "dog"], None, {"text": "cat"}])
def test_other_answers_are_refused_before_a_question_is_asked(answer):
    with pytest.raises(ValueError, match="`answer` must be text or a number, one for each question, got"):
        evaluate_captioning(None, None, [row(answer)])


def test_no_questions(evaluate):
    with pytest.raises(ValueError, match="`rows` holds no question"):
        evaluate([], [])


def test_answers_do_not_depend_on_the_batch():
    mllm, processor = build_tiny_mllm(), build_tiny_processor()
    questions = ["what?", "a much longer question than the first?", "style?"]
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "white", "blue")]
    together = answer_all(mllm, processor, pictures, questions, max_new_tokens=6)
    apart = answer_all(mllm, processor, pictures, questions, max_new_tokens=6, batch_size=1)
    assert together == apart and len(together) == 3
    assert all("\n" not in answer for answer in together)


def test_questions_that_the_model_can_not_read_are_left_out():
    mllm, processor = build_tiny_mllm(), build_tiny_processor()
    wrong = {
        "": "must not be empty",
        "<|image_pad|>?": "special tokens",
        "x" * 2000: "more than the 1024",
        "\ud83d": "half",
    }
    questions = ["what?", *wrong, "which?"]
    rows = PictureRows([row("red") | {"question": question} for question in questions], columns=["question"])
    report = evaluate_captioning(mllm, processor, rows, max_new_tokens=2, batch_size=2)
    assert report.rows[0].scores["exact_match"].count == 2
    for number, (reason, wanted) in enumerate(zip(rows.all_skipped(), wrong.values(), strict=True), 1):
        assert reason.startswith(f"row {number}: `question`") and wanted in reason


def test_pictures_of_a_size_that_the_model_can_not_read_are_left_out():
    long = row("red") | {"image": Image.new("RGB", (64 * 200, 64))}
    rows = PictureRows([row("red"), long])
    report = evaluate_captioning(build_tiny_mllm(), build_tiny_processor(), rows, max_new_tokens=2)
    assert report.rows[0].scores["exact_match"].count == 1
    assert rows.all_skipped()[0].startswith("row 1: `width` must be a multiple of")
