from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny_judges import build_clip
from tiny_models import build_tiny_pipeline

from uniwetok_hf import UniWeTokEditPipeline
from uniwetok_hf.evaluation.editing import edit_pairs, evaluate_editing
from uniwetok_hf.evaluation.generation import generate_all
from uniwetok_hf.evaluation.judges import Judge
from uniwetok_hf.evaluation.metrics import psnr
from uniwetok_hf.evaluation.reconstruction import reconstruct_all
from uniwetok_hf.evaluation.rows import PictureRows


def plain(*colour, size=(64, 64)):
    return Image.new("RGB", size, colour)


def colour(image):
    return image.getpixel((0, 0))


class Painter:
    """Generates what a test chose for an instruction; its tokenizer and settings are real."""

    def __init__(self, pipe, pictures):
        self.mllm, self.config, self.scale_for_images = pipe.mllm, pipe.config, pipe.scale_for_images
        self.value_or_default, self.scheduler = pipe.value_or_default, pipe.scheduler
        self.encode_image = pipe.encode_image
        self.pictures = pictures

    def __call__(self, prompt, generator, image=None, **call):
        return SimpleNamespace(images=[self.pictures[words] for words in prompt])


@pytest.fixture(scope="module")
def pipe():
    return build_tiny_pipeline()


@pytest.fixture(scope="module")
def edit_pipe(pipe):
    edit_pipe = UniWeTokEditPipeline.from_pipe(pipe)
    edit_pipe.set_progress_bar_config(disable=True)
    return edit_pipe


@pytest.fixture
def evaluate(edit_pipe):
    """`evaluate(edited, generated, rows)`: the report of chosen pictures, by instruction."""

    def run(edited, generated, rows, **settings):
        return evaluate_editing(Painter(edit_pipe, edited), Painter(edit_pipe, generated), rows, by="kind", **settings)

    return run


def row(source, instruction, target, others, kind):
    return {"source": source, "instruction": instruction, "target": target, "others": others, "kind": kind}


ROWS = [
    row(plain(200, 0, 0), "to green", plain(0, 200, 0), [plain(0, 0, 200)], "colour"),
    row(plain(0, 0, 200), "to dark", plain(0, 0, 100), [plain(50, 50, 50), plain(0, 0, 250)], "tone"),
]
RIGHT = {"to green": plain(10, 190, 10), "to dark": plain(0, 0, 110)}
IDLE = {"to green": plain(200, 0, 0), "to dark": plain(0, 0, 250)}


def scores(report):
    return {(row.labels["what"], row.labels.get("of")): row.scores for row in report.rows}


def test_right_wrong_and_unchanged_results(evaluate):
    report = evaluate(RIGHT, IDLE, ROWS)
    found = scores(report)
    assert [row.labels for row in report.rows if row.for_card] == [{"what": "model", "of": "all"}]
    nearest = found["model", "all"]["nearest_by_pixels"]
    assert nearest.value == 1 and nearest.count == 2 and nearest.chance == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert found["model", "tone"]["nearest_by_pixels"].chance == 1 / 4
    assert found["copy of the source", "all"]["nearest_by_pixels"].value == 0
    assert found["words alone", "all"]["nearest_by_pixels"].value == 0
    by_hand = 10 * np.log10(255**2 / ((10**2) / 3))
    assert found["model", "tone"]["psnr_to_target"].value == pytest.approx(by_hand, abs=1e-6)
    assert "nearest_by_judge" not in found["model", "all"]


def test_the_ceiling_is_the_targets_after_the_image_tokenizer(evaluate, pipe):
    decoded = reconstruct_all(pipe.mllm.vision_model, [row["target"] for row in ROWS], seed=4)
    report = evaluate(dict(zip(RIGHT, decoded, strict=True)), IDLE, ROWS, seed=4)
    found = scores(report)
    assert found["targets, through the codes", "all"] == found["model", "all"]
    assert found["targets, through the codes", "tone"] == found["model", "tone"]


def test_results_of_another_size_are_fitted(evaluate):
    small = {"to green": plain(0, 200, 0, size=(32, 32)), "to dark": plain(0, 0, 100, size=(96, 64))}
    found = scores(evaluate(small, small, ROWS[:1]))
    assert found["model", None]["nearest_by_pixels"].value == 1  # one kind only: no rows of kinds
    assert found["model", None]["psnr_to_target"].count == 0  # identical: infinite


def test_a_judge_looks_too(evaluate):
    class Blind:
        seen = "no"

        def describe(self):
            return "blind"

        def embed_images(self, images):
            return np.ones((len(images), 4))

    class Sighted(Blind):
        def embed_images(self, images):
            return np.array([np.array(colour(image)) - 100.0 for image in images])

    blind, sighted = (evaluate(RIGHT, RIGHT, ROWS, judge=judge()) for judge in (Blind, Sighted))
    assert scores(blind)["model", "all"]["nearest_by_judge"].value == 0
    assert scores(sighted)["model", "all"]["nearest_by_judge"].value == 1
    assert blind.protocol["judge"] == "blind" and blind.protocol["did training losses see the judge"] == "no"


def test_own_wrong_results_are_used_alone():
    rows = [one | {"others": [*one["others"], one["others"][0].copy(), one["source"], one["target"]]} for one in ROWS]
    pairs = edit_pairs(rows, num_rivals=1)
    assert [list(map(colour, pair.others)) for pair in pairs] == [[(0, 0, 200)], [(50, 50, 50), (0, 0, 250)]]


def test_rows_without_a_list_of_wrong_results_have_those_of_other_rows():
    """`datasets` fills in None where some rows have the column."""
    rows = [ROWS[0] | {"others": None}, ROWS[1] | {"others": []}, {**ROWS[1], "target": plain(9, 9, 9)}]
    del rows[2]["others"]
    first, second, third = edit_pairs(rows)
    assert {colour(other) for other in first.others} == {(0, 0, 100), (9, 9, 9)}
    assert second.others == [] and {colour(other) for other in third.others} == {(0, 200, 0), (0, 0, 100)}


def test_pairs_have_targets_of_other_rows_as_rivals():
    rows = [
        {"source": plain(i, 0, 0), "instruction": f"edit {i}", "target": plain(0, i, 0), "kind": i % 2}
        for i in range(1, 6)
    ]
    rows.append(rows[0] | {"source": plain(99, 0, 0)})
    edits = edit_pairs(rows, num_rivals=3, seed=1, by="kind")
    assert len(edits) == 6 and edits[1].kind == "0" and edit_pairs(rows)[0].kind == ""
    for edit in edits:
        assert len(edit.others) == 3
        assert all(colour(other)[0] == 0 and colour(other) != colour(edit.target) for other in edit.others)
    other = edit_pairs(rows, num_rivals=3, seed=2, by="kind")
    assert [list(map(colour, e.others)) for e in edits] != [list(map(colour, e.others)) for e in other]


def test_with_real_models(edit_pipe, pipe, tmp_path):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(6)]
    rows = [row(images[i], f"edit {i}", images[i + 1], [images[5]], "") for i in range(3)]
    judge = Judge.from_pretrained(build_clip(tmp_path / "clip"))
    report = evaluate_editing(edit_pipe, pipe, rows, judge=judge, seed=3, batch_size=2, num_inference_steps=1)
    methods = ["model", "copy of the source", "words alone", "targets, through the codes"]
    assert [row.labels["what"] for row in report.rows] == methods
    assert all(set(row.scores) == {"psnr_to_target", "nearest_by_pixels", "nearest_by_judge"} for row in report.rows)
    first, second = report.rows[0].scores["psnr_to_target"], report.rows[2].scores["psnr_to_target"]
    assert first.value != second.value  # the source is seen


@pytest.mark.parametrize("size", [None, {"height": 64, "width": 64}])
def test_padding_of_sources_is_not_compared(size):
    """Sources of several sizes, of which the model sees some with padding, and all scaled when it has one size."""
    pipe = build_tiny_pipeline()
    pipe.processor.image_processor.size = size
    edit_pipe = UniWeTokEditPipeline.from_pipe(pipe)
    edit_pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (60, 30), (128, 64), (64, 64), (30, 60)]
    images = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    rows = [row(image, f"edit {i}", image.rotate(180), [images[0]], "") for i, image in enumerate(images)]
    settings = {"seed": 5, "batch_size": 2, "num_inference_steps": 1}
    report = evaluate_editing(edit_pipe, pipe, rows, **settings)
    assert [row.scores["psnr_to_target"].count for row in report.rows] == [5, 5, 5, 5]

    results = generate_all(edit_pipe, [f"edit {i}" for i in range(5)], images, **settings)
    if size is None:
        assert [result.size for result in results] == sizes
    else:
        assert [result.size for result in results] == [(64, 64), (64, 32), (64, 32), (64, 64), (32, 64)]
    fitted = [result.resize(size, Image.Resampling.BICUBIC) for result, size in zip(results, sizes, strict=True)]
    expected = np.mean([psnr(result, image.rotate(180)) for result, image in zip(fitted, images, strict=True)])
    assert report.rows[0].scores["psnr_to_target"].value == pytest.approx(expected)


def test_no_edits():
    with pytest.raises(ValueError, match="`rows` holds no edit"):
        evaluate_editing(None, None, [])


def test_edits_that_the_model_can_not_read_are_left_out(edit_pipe, pipe):
    wrong = ["", "a cat<|im_end|>", "x" * 2000]
    long = ROWS[0] | {"source": plain(0, 0, 0, size=(64 * 200, 64))}
    rows = PictureRows([*ROWS, *(ROWS[0] | {"instruction": text} for text in wrong), long], ["source", "target"])
    report = evaluate_editing(edit_pipe, pipe, rows, num_inference_steps=1)
    assert report.rows[0].scores["psnr_to_target"].count == 2
    assert [reason.split(":")[0] for reason in rows.all_skipped()] == [f"row {number}" for number in range(2, 6)]
