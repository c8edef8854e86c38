import numpy as np
import pytest
from PIL import Image
from tiny_judges import build_clip
from tiny_models import build_tiny_pipeline

from uniwetok_hf import UniWeTokEditPipeline
from uniwetok_hf.evaluation.editing import Edit, edits_of_emoji, edits_of_pairs, evaluate_editing
from uniwetok_hf.evaluation.judges import Judge


def plain(*colour, size=(64, 64)):
    return Image.new("RGB", size, colour)


def colour(image):
    return image.getpixel((0, 0))


class Painter:
    """Draws what a test chose for an instruction."""

    def __init__(self, pictures):
        self.pictures = pictures

    def __call__(self, prompt, generator, image=None, **call):
        return type("Output", (), {"images": [self.pictures[words] for words in prompt]})


@pytest.fixture
def edits():
    return [
        Edit(plain(200, 0, 0), "to green", plain(0, 200, 0), [plain(0, 0, 200)], "colour"),
        Edit(plain(0, 0, 200), "to dark", plain(0, 0, 100), [plain(50, 50, 50), plain(0, 0, 250)], "tone"),
    ]


def scores(rows):
    return {(row.labels["what"], row.labels.get("of")): row.scores for row in rows}


def test_right_wrong_and_unchanged_results(edits):
    right = Painter({"to green": plain(10, 190, 10), "to dark": plain(0, 0, 110)})
    idle = Painter({"to green": plain(200, 0, 0), "to dark": plain(0, 0, 250)})
    rows = evaluate_editing(right, idle, edits)
    found = scores(rows)
    assert [row.labels for row in rows if row.for_card] == [{"what": "model", "of": "all"}]
    nearest = found["model", "all"]["nearest_by_pixels"]
    assert nearest.value == 1 and nearest.count == 2 and nearest.chance == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert found["model", "tone"]["nearest_by_pixels"].chance == 1 / 4
    assert found["copy of the source", "all"]["nearest_by_pixels"].value == 0
    assert found["words alone", "all"]["nearest_by_pixels"].value == 0
    by_hand = 10 * np.log10(255**2 / ((10**2) / 3))
    assert found["model", "tone"]["psnr_to_target"].value == pytest.approx(by_hand, abs=1e-6)
    assert "nearest_by_judge" not in found["model", "all"]


def test_results_of_another_size_are_fitted(edits):
    small = Painter({"to green": plain(0, 200, 0, size=(32, 32)), "to dark": plain(0, 0, 100, size=(96, 64))})
    found = scores(evaluate_editing(small, small, edits[:1]))
    assert found["model", None]["nearest_by_pixels"].value == 1  # one kind only: no rows of kinds
    assert found["model", None]["psnr_to_target"].count == 0  # identical: infinite


def test_a_judge_looks_too(edits):
    class Blind:
        def embed_images(self, images):
            return np.ones((len(images), 4))

    class Sighted:
        def embed_images(self, images):
            return np.array([np.array(colour(image)) - 100.0 for image in images])

    right = Painter({"to green": plain(10, 190, 10), "to dark": plain(0, 0, 110)})
    assert scores(evaluate_editing(right, right, edits, Blind()))["model", "all"]["nearest_by_judge"].value == 0
    assert scores(evaluate_editing(right, right, edits, Sighted()))["model", "all"]["nearest_by_judge"].value == 1


def test_emoji_rivals_are_other_edits_of_the_source_first():
    names = ["noto/a", "noto/a-1", "noto/a-2", "noto/twin", "noto/b", "flat/a", "flat/b"]
    pictures = {name: plain(10 * index, 0, 0) for index, name in enumerate(names)}
    pictures["noto/twin"] = pictures["noto/a-1"].copy()  # the same drawing under another name
    rows = [
        {"source": "noto/a", "target": "noto/a-1", "instruction": "one", "kind": "tone"},
        {"source": "noto/a", "target": "noto/a-2", "instruction": "two", "kind": "tone"},
        {"source": "noto/a", "target": "flat/a", "instruction": "flat", "kind": "style"},
    ]
    for seed in range(5):
        (first,) = edits_of_emoji(rows, pictures, [0], num_others=2, seed=seed)
        assert {colour(image)[0] for image in first.others} == {20, 50}  # the two other targets
        (all_of_them,) = edits_of_emoji(rows, pictures, [0], num_others=9, seed=seed)
        # Then Noto's others: not source, target or twin.
        assert sorted(colour(image)[0] for image in all_of_them.others) == [20, 40, 50]
    assert first.kind == "tone" and colour(first.source) == (0, 0, 0) and colour(first.target) == (10, 0, 0)


def test_pairs_have_targets_of_other_rows_as_rivals():
    rows = [
        {"source": plain(i, 0, 0), "instruction": f"edit {i}", "target": plain(0, i, 0), "kind": i % 2}
        for i in range(1, 6)
    ]
    rows.append(rows[0] | {"source": plain(99, 0, 0)})
    edits = edits_of_pairs(rows, num_others=3, seed=1, by="kind")
    assert len(edits) == 6 and edits[1].kind == "0" and edits_of_pairs(rows)[0].kind == ""
    for edit in edits:
        assert len(edit.others) == 3
        assert all(colour(other)[0] == 0 and colour(other) != colour(edit.target) for other in edit.others)
    other = edits_of_pairs(rows, num_others=3, seed=2, by="kind")
    assert [list(map(colour, e.others)) for e in edits] != [list(map(colour, e.others)) for e in other]


def test_with_real_models(tmp_path):
    pipe = build_tiny_pipeline()
    edit_pipe = UniWeTokEditPipeline.from_pipe(pipe)
    edit_pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(6)]
    edits = [Edit(images[i], f"edit {i}", images[i + 1], [images[5]]) for i in range(3)]
    judge = Judge.from_pretrained(build_clip(tmp_path / "clip"))
    rows = evaluate_editing(edit_pipe, pipe, edits, judge, seed=3, batch_size=2, num_inference_steps=1)
    assert [row.labels["what"] for row in rows] == ["model", "copy of the source", "words alone"]
    assert all(set(row.scores) == {"psnr_to_target", "nearest_by_pixels", "nearest_by_judge"} for row in rows)
    first, second = rows[0].scores["psnr_to_target"], rows[2].scores["psnr_to_target"]
    assert first.value != second.value  # the source is seen


def test_no_edits():
    with pytest.raises(ValueError, match="`edits` is empty"):
        evaluate_editing(None, None, [])
