import pytest

from uniwetok_hf.evaluation.words import exact_match, normalize_answer, token_f1


def test_case_punctuation_and_spaces_do_not_count():
    assert normalize_answer("  A RED, red\nHeart! ") == "a red red heart"
    assert exact_match("Red heart.", "red  heart") and exact_match("STRASSE", "straße")
    assert not exact_match("red heart", "heart red") and not exact_match("", "heart")


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("red heart", "red heart", 1),
        ("heart, red", "Red heart", 1),
        ("blue heart", "red heart", 0.5),
        ("heart heart heart", "heart", 0.5),  # 1 of 3 and 1 of 1
        ("a big red heart", "heart", 0.4),
        ("cat", "dog", 0),
        ("", "dog", 0),
        ("cat", "!", 0),
        ("", "...", 1),
    ],
)
def test_f1(answer, reference, expected):
    assert token_f1(answer, reference) == pytest.approx(expected)
    assert token_f1(reference, answer) == pytest.approx(expected)
