import numpy as np
import pytest
import torch
from datasets import load_from_disk
from PIL import Image

from uniwetok_hf.evaluation.drawing import nearest_is_own, nearest_picture_accuracy, thumbnail, wilson_interval


class Painter:
    """Stands where a pipeline does and "draws" pictures that the test chose, so that the score is known."""

    def __init__(self, pictures):
        self.pictures = pictures

    def __call__(self, prompts, generator, **call):
        assert len(generator) == len(prompts)
        return type("Output", (), {"images": [self.pictures[prompt] for prompt in prompts]})


@pytest.fixture(scope="module")
def rows(fixtures):
    return load_from_disk(str(fixtures / "emoji" / "pictures"))["train"]


def prompt(row):
    return f"a {row['style']} emoji of {row['label']}"


def test_thumbnail_averages():
    picture = Image.new("RGB", (64, 64), "black")
    picture.paste("white", (0, 0, 1, 2))
    small = thumbnail(picture)
    assert small.shape == (32, 32, 3) and small.dtype == np.float32
    assert 127 <= small[0, 0, 0] <= 128 and small[0, 1:].max() == 0


def test_nearest_is_own():
    own, near, far = (np.full((2, 2, 3), value, np.float32) for value in (0, 10, 200))
    assert nearest_is_own(own + 4, own, [near, far])
    assert not nearest_is_own(own + 6, own, [near, far])
    assert not nearest_is_own(own + 5, own, [near])  # a tie is no success


def test_wilson_interval():
    low, high = wilson_interval(50, 200)
    assert low == pytest.approx(0.1951, abs=1e-4) and high == pytest.approx(0.3143, abs=1e-4)
    assert wilson_interval(0, 10)[0] == pytest.approx(0, abs=1e-9)


def test_perfect_and_wrong_drawings(rows):
    right = {prompt(row): row["image"] for row in rows}
    scores = nearest_picture_accuracy(Painter(right), rows, count=10, num_others=3)
    assert scores["accuracy"] == 1 and scores["count"] == 10 and scores["times_chance"] == 4
    blank = {prompt(row): Image.new("RGB", (64, 64), "black") for row in rows}
    assert nearest_picture_accuracy(Painter(blank), rows, count=10, num_others=3)["accuracy"] < 1


def test_choices_follow_the_seed(rows):
    drawn = []

    class Recorder(Painter):
        def __call__(self, prompts, generator, **call):
            drawn.append((prompts, [torch.rand(1, generator=g).item() for g in generator]))
            return super().__call__(prompts, generator)

    painter = Recorder({prompt(row): row["image"] for row in rows})
    for seed in (0, 0, 1):
        nearest_picture_accuracy(painter, rows, count=5, num_others=3, seed=seed)
    assert drawn[0] == drawn[1] != drawn[2]
