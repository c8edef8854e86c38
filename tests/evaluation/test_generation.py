import ast
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from PIL import Image
from tiny_judges import build_clip, build_vit
from tiny_models import build_tiny_pipeline

from uniwetok_hf.evaluation.generation import evaluate_generation, generate_all
from uniwetok_hf.evaluation.judges import Judge
from uniwetok_hf.evaluation.rows import PictureRows


class Painter:
    """A pipeline that "generates" the pictures that a test chose, so that scores are known; its tokenizer is real."""

    def __init__(self, pipe, pictures):
        self.mllm, self.scheduler, self.value_or_default = pipe.mllm, pipe.scheduler, pipe.value_or_default
        self.pictures, self.prompts = pictures, []

    def __call__(self, prompt, generator, **call):
        assert len(generator) == len(prompt)
        self.prompts += prompt
        return SimpleNamespace(images=[self.pictures[words] for words in prompt])


class ColourJudge:
    """A judge that knows colours: embeds a picture as its mean colour, and a text as the colour it names."""

    seen = "no"

    def describe(self):
        return "colours"

    def embed_images(self, images, processes=None):
        return np.array([np.asarray(image, dtype=np.float64).mean((0, 1)) - 127 for image in images])

    def embed_texts(self, texts):
        return np.array([np.array(ast.literal_eval(text)) - 127.0 for text in texts])


@pytest.fixture(scope="module")
def pipe():
    return build_tiny_pipeline()


def rows_of(colours):
    return [{"text": str(value), "image": Image.new("RGB", (64, 64), value)} for value in colours]


@pytest.fixture(scope="module")
def colours():
    rng = np.random.default_rng(0)
    return rows_of(tuple(rng.integers(0, 256, 3).tolist()) for _ in range(24))


def scores(report):
    return {row.labels["what"]: row.scores for row in report.rows}


def test_perfect_pictures(pipe, colours):
    painter = Painter(pipe, {row["text"]: row["image"] for row in colours})
    # Every second row is the other real picture, of the same colour.
    twice = [one for row in colours for one in (row, row | {"image": row["image"].rotate(90)})]
    judge = ColourJudge()
    report = evaluate_generation(painter, twice, count=24, judge=judge, feature_model=judge, num_rivals=5)
    found = scores(report)
    assert painter.prompts == [row["text"] for row in colours]
    for name in ("r_precision", "nearest_by_pixels", "nearest_by_judge"):
        assert found["model"][name].value == 1 and found["model"][name].count == 24
        assert found["model"][name].chance == pytest.approx(1 / 6)
    assert found["model"]["frechet"].value == pytest.approx(0, abs=1e-6)
    assert found["model"]["precision"].value == found["model"]["recall"].value == 1
    assert found["other real"]["frechet"].value == pytest.approx(0, abs=1e-6)
    assert found["real"] == {"r_precision": found["model"]["r_precision"]}
    assert [row.labels["what"] for row in report.rows if row.for_card] == ["model"]
    assert report.protocol["judge"] == "colours" and report.protocol["did training losses see the judge"] == "no"


def test_one_picture_for_all_prompts(pipe, colours):
    magenta = Image.new("RGB", (64, 64), (250, 5, 250))
    painter = Painter(pipe, {row["text"]: magenta for row in colours})
    judge = ColourJudge()
    found = scores(evaluate_generation(painter, colours, judge=judge, feature_model=judge, num_rivals=5))
    assert found["model"]["r_precision"].value < 0.5 and found["model"]["nearest_by_pixels"].value < 0.5
    assert found["real"]["r_precision"].value == 1
    assert found["model"]["recall"].value < 0.2 and found["model"]["frechet"].value > 1000
    codes = found["real, through the codes"]  # an untrained tokenizer loses all
    assert codes["frechet"].value > 100 and "nearest_by_pixels" in codes
    assert "other real" not in found


def test_rivals_come_from_the_same_group(pipe):
    # Two shades of red in one group and two of blue in the other: only the group makes a picture in plain red wrong.
    rows = rows_of([(250, 0, 0), (200, 0, 0), (0, 0, 250), (0, 0, 200)])
    painter = Painter(pipe, {row["text"]: rows[other]["image"] for row, other in zip(rows, (1, 0, 3, 2), strict=True)})

    def nearest(groups):
        grouped = [row | {"group": group} for row, group in zip(rows, groups, strict=True)]
        report = evaluate_generation(painter, grouped, within="group", num_rivals=3)
        return scores(report)["model"]["nearest_by_pixels"], report.protocol["rivals"]

    found, protocol = nearest("rrbb")
    assert (found.value, found.chance, protocol) == (0, 0.5, "up to 3 others of the same group")
    # The last is alone in its group, and its rivals are of any; those of the others stay.
    found, protocol = nearest("rrrb")
    assert found.chance == pytest.approx((3 / 3 + 1 / 4) / 4)
    assert protocol == "up to 3 others of the same group, of any for 1"


def test_a_damaged_picture_costs_no_more_than_itself(pipe, colours):
    painter, judge = Painter(pipe, {row["text"]: row["image"] for row in colours}), ColourJudge()
    twice = [one for row in colours for one in (row, row | {"image": row["image"].rotate(90)})]
    for missing in (0, 5, 46):
        read = twice[:missing] + twice[missing + 1 :]
        report = evaluate_generation(painter, read, count=24, judge=judge, feature_model=judge, num_rivals=5)
        found = scores(report)
        assert found["model"]["nearest_by_pixels"].count == 24 and found["other real"]["frechet"].count == 23


def test_with_real_models(pipe, fixtures, tmp_path):
    rows = PictureRows(load_from_disk(str(fixtures / "emoji" / "pictures"))["train"].select(range(0, 16)))
    models = {
        "judge": Judge.from_pretrained(build_clip(tmp_path / "clip")),
        "feature_model": Judge.from_pretrained(build_vit(tmp_path / "vit")),
    }
    settings = {"prompt": "{style} {label}", "count": 8, "num_rivals": 3, "seed": 1, "batch_size": 3}
    report = evaluate_generation(pipe, rows, **settings, **models)
    assert set(scores(report)["model"]) == {
        "nearest_by_pixels", "r_precision", "nearest_by_judge", "frechet", "precision", "recall"
    }  # fmt: skip
    assert set(scores(report)["other real"]) == {"frechet", "precision", "recall"}
    assert report.protocol["prompts"] == f"8, such as: {rows.rows[0]['style']} {rows.rows[0]['label']}"
    assert scores(evaluate_generation(pipe, rows, **settings, **models)) == scores(report)


def test_too_few_prompts(pipe, colours):
    same = [row | {"text": "a"} for row in colours[:2]]
    with pytest.raises(ValueError, match="2 or more different prompts, got 1"):
        evaluate_generation(Painter(pipe, {}), same)


def test_a_judge_without_texts_is_refused_before_anything_is_generated(pipe, colours, tmp_path):
    with pytest.raises(ValueError, match="reads no texts"):
        evaluate_generation(Painter(pipe, {}), colours, judge=Judge.from_pretrained(build_vit(tmp_path / "vit")))


class Recorder:
    """Stands where a pipeline does, and notes what it is asked for."""

    def __init__(self):
        self.calls = []

    def encode_image(self, images):
        return [SimpleNamespace(pixel_size=image.size, picture=image) for image in images]

    def __call__(self, prompt, generator, **call):
        numbers = [torch.rand(1, generator=g).item() for g in generator]
        self.calls.append((prompt, numbers, call))
        return type("Output", (), {"images": [Image.new("RGB", (1, 1), (len(text), 0, 0)) for text in prompt]})


def test_each_picture_has_its_own_seed_whatever_the_batch():
    prompts = ["a", "bb", "ccc"]
    together, apart = Recorder(), Recorder()
    generated = generate_all(together, prompts, seed=5, batch_size=2, guidance_scale=3)
    assert [image.getpixel((0, 0))[0] for image in generated] == [1, 2, 3]
    assert [call[0] for call in together.calls] == [["a", "bb"], ["ccc"]]
    assert together.calls[0][2] == {"guidance_scale": 3}
    generate_all(apart, prompts, seed=5, batch_size=1)
    numbers = [number for call in together.calls for number in call[1]]
    assert numbers == [number for call in apart.calls for number in call[1]]
    assert numbers[1] == torch.rand(1, generator=torch.Generator().manual_seed(6)).item()


def test_pictures_to_edit_go_with_their_instructions():
    recorder, sources = Recorder(), [Image.new("RGB", (1, 1), (value, 0, 0)) for value in (7, 8, 9)]
    generate_all(recorder, ["a", "b", "c"], sources, batch_size=2)
    assert [one.picture.getpixel((0, 0))[0] for call in recorder.calls for one in call[2]["image"]] == [7, 8, 9]


def test_pictures_of_one_size_are_edited_together():
    recorder, alone = Recorder(), Recorder()
    prompts, sizes = ["a", "bb", "ccc", "dddd"], [(1, 1), (2, 1), (1, 1), (1, 1)]
    sources = [Image.new("RGB", size) for size in sizes]
    edited = generate_all(recorder, prompts, sources, seed=3, batch_size=2)
    assert [image.getpixel((0, 0))[0] for image in edited] == [1, 2, 3, 4]
    assert [call[0] for call in recorder.calls] == [["a", "ccc"], ["dddd"], ["bb"]]
    generate_all(alone, prompts, seed=3, batch_size=1)
    numbers = dict(zip(prompts, (call[1][0] for call in alone.calls), strict=True))
    for texts, found, _ in recorder.calls:
        assert found == [numbers[text] for text in texts]


@pytest.mark.parametrize("prompt", ["", " ", None])
def test_an_empty_prompt_ends_before_anything_is_generated(prompt):
    recorder = Recorder()
    with pytest.raises(ValueError, match="not empty, got .* for picture 1"):
        generate_all(recorder, ["a", prompt], batch_size=1)
    assert recorder.calls == []


def test_prompts_that_the_model_can_not_read_are_left_out(pipe, colours):
    wrong = ["", "a cat<|im_end|>", "x" * 2000, "half of a pair \ud83d"]
    rows = PictureRows([*colours[:2], *(colours[2] | {"text": text} for text in wrong)])
    report = evaluate_generation(pipe, rows, num_rivals=1, num_inference_steps=1)
    assert scores(report)["model"]["nearest_by_pixels"].count == 2
    assert [reason.split(":")[0] for reason in rows.all_skipped()] == [f"row {number}" for number in range(2, 6)]
    with pytest.raises(ValueError, match=r"11 of 11 samples can't be used.*row 0: `prompt` must not be empty"):
        evaluate_generation(pipe, PictureRows([colours[0] | {"text": ""}] * 12, max_skipped_share=0.5))


@pytest.mark.parametrize(
    "num_rows, told", [(24, "every second"), (23, "every second"), (18, "12, chosen with seed 0"), (12, "all")]
)
def test_which_rows_is_told(pipe, colours, num_rows, told):
    """Where there are nearly twice as many, no seed chooses."""
    painter = Painter(pipe, {row["text"]: row["image"] for row in colours})
    assert evaluate_generation(painter, colours[:num_rows], count=12, num_rivals=2).protocol["rows"] == told
