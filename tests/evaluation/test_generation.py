import ast

import numpy as np
import pytest
from datasets import load_from_disk
from PIL import Image
from tiny_judges import build_clip, build_vit
from tiny_models import build_tiny_pipeline

from uniwetok_hf.evaluation.generation import DrawingRows, evaluate_generation, nearest_by_features
from uniwetok_hf.evaluation.judges import Judge


class Painter:
    """A pipeline that "draws" the pictures that a test chose, so that scores are known; its tokenizer is real."""

    def __init__(self, pipe, pictures):
        self.mllm, self.pictures, self.prompts = pipe.mllm, pictures, []

    def __call__(self, prompt, generator, **call):
        assert len(generator) == len(prompt)
        self.prompts += prompt
        return type("Output", (), {"images": [self.pictures[words] for words in prompt]})


class ColourJudge:
    """A judge that knows colours: embeds a picture as its mean colour, and a text as the colour it names."""

    reads_texts = True

    def embed_images(self, images):
        return np.array([np.asarray(image, dtype=np.float64).mean((0, 1)) - 127 for image in images])

    def embed_texts(self, texts):
        return np.array([np.array(ast.literal_eval(text)) - 127.0 for text in texts])


@pytest.fixture(scope="module")
def pipe():
    return build_tiny_pipeline()


@pytest.fixture(scope="module")
def colours():
    rng = np.random.default_rng(0)
    values = [tuple(rng.integers(0, 256, 3).tolist()) for _ in range(24)]
    pictures = [Image.new("RGB", (64, 64), value) for value in values]
    return DrawingRows([str(value) for value in values], pictures, None, [p.rotate(90) for p in pictures])


def scores(rows):
    return {row.labels["what"]: row.scores for row in rows}


def test_perfect_drawings(pipe, colours):
    painter = Painter(pipe, dict(zip(colours.prompts, colours.pictures, strict=True)))
    judge = ColourJudge()
    rows = evaluate_generation(painter, colours, judge, judge, num_rivals=5)
    found = scores(rows)
    assert painter.prompts == colours.prompts
    for name in ("r_precision", "nearest_by_pixels", "nearest_by_judge"):
        assert found["model"][name].value == 1 and found["model"][name].count == 24
        assert found["model"][name].chance == pytest.approx(1 / 6)
    assert found["model"]["frechet"].value == pytest.approx(0, abs=1e-6)
    assert found["model"]["precision"].value == found["model"]["recall"].value == 1
    assert found["other real"]["frechet"].value == pytest.approx(0, abs=1e-6)
    assert found["real"] == {"r_precision": found["model"]["r_precision"]}
    assert [row.labels["what"] for row in rows if row.for_card] == ["model"]


def test_one_drawing_for_all_prompts(pipe, colours):
    grey = Image.new("RGB", (64, 64), (250, 5, 250))
    judge = ColourJudge()
    found = scores(evaluate_generation(Painter(pipe, dict.fromkeys(colours.prompts, grey)), colours, judge, judge, 5))
    assert found["model"]["r_precision"].value < 0.5 and found["model"]["nearest_by_pixels"].value < 0.5
    assert found["real"]["r_precision"].value == 1
    assert found["model"]["recall"].value < 0.2 and found["model"]["frechet"].value > 1000
    codes = found["real, through the codes"]  # an untrained tokenizer loses all
    assert codes["frechet"].value > 100 and "nearest_by_pixels" in codes


def test_rivals_come_from_the_same_group(pipe):
    # Two shades of red in one group and two of blue in the other: only the group makes a drawing in plain red wrong.
    values = [(250, 0, 0), (200, 0, 0), (0, 0, 250), (0, 0, 200)]
    pictures = [Image.new("RGB", (64, 64), value) for value in values]
    prompts = [str(value) for value in values]
    drawn = dict(zip(prompts, (pictures[1], pictures[0], pictures[3], pictures[2]), strict=True))
    data = DrawingRows(prompts, pictures, list("rrbb"))
    found = scores(evaluate_generation(Painter(pipe, drawn), data, num_rivals=3))
    assert found["model"]["nearest_by_pixels"].value == 0
    assert found["model"]["nearest_by_pixels"].chance == 0.5
    lonely = DrawingRows(prompts, pictures, list("rrrb"))
    assert scores(evaluate_generation(Painter(pipe, drawn), lonely))["model"]["nearest_by_pixels"].chance == 0.25


def test_with_real_models(pipe, fixtures, tmp_path):
    rows = load_from_disk(str(fixtures / "emoji" / "pictures"))["train"].select(range(0, 16))
    pictures = [image.convert("RGB") for image in rows["image"]]
    prompts = [f"{row['style']} {row['label']}" for row in rows]
    judge = Judge.from_pretrained(build_clip(tmp_path / "clip"))
    features = Judge.from_pretrained(build_vit(tmp_path / "vit"))
    data = DrawingRows(prompts[:8], pictures[:8], None, pictures[8:])
    found = scores(evaluate_generation(pipe, data, judge, features, num_rivals=3, seed=1, batch_size=3))
    assert set(found["model"]) == {
        "nearest_by_pixels", "r_precision", "nearest_by_judge", "frechet", "precision", "recall"
    }  # fmt: skip
    assert set(found["other real"]) == {"frechet", "precision", "recall"}
    again = scores(evaluate_generation(pipe, data, judge, features, num_rivals=3, seed=1, batch_size=3))
    assert found == again


def test_nearest_by_features_by_hand():
    real = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    found = np.array([[2.0, 0.1], [1.0, 0.9], [-1.0, 5.0]])
    score = nearest_by_features(found, real, [[1, 2], [0, 2], [0, 1]])
    assert (score.value, score.chance) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_too_few_prompts(pipe, colours):
    with pytest.raises(ValueError, match="2 or more different prompts, got 1"):
        evaluate_generation(Painter(pipe, {}), DrawingRows(["a", "a"], colours.pictures[:2]))
