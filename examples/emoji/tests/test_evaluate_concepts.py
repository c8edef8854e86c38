"""Scores of a class-to-image model on concepts: the judge reads all names, pixels see all pictures."""

import json

import emoji_data
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from evaluate_concepts import ConceptScore, main
from PIL import Image
from tiny_judges import build_clip
from tiny_models import build_tiny_class_pipeline

from uniwetok_hf.evaluation.judges import Judge


NAMES, STYLES = ("apple", "bread", "cherry"), ("flat", "noto")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Three foods of one colour each, in two styles; and a cat."""
    monkeypatch.setattr(emoji_data, "DATA", str(tmp_path / "emoji"))
    rows = [
        {
            "name": name,
            "style": style,
            "group": emoji_data.FOOD,
            "image": Image.new("RGB", (64, 64), (80 * i, 99 * j, 9)),
        }
        for i, name in enumerate(NAMES)
        for j, style in enumerate(STYLES)
    ]
    rows.append(rows[0] | {"name": "cat", "group": "animals-nature"})
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(tmp_path / "emoji" / "pictures")
    return tmp_path


def test_food_is_one_group(data):
    rows = emoji_data.food("train")
    assert list(rows["name"]) == ["apple", "apple", "bread", "bread", "cherry", "cherry"]


def test_pixels_find_the_class_of_the_nearest_picture(data):
    rows = emoji_data.food("train")
    judge = Judge.from_pretrained(build_clip(data / "clip"))
    score = ConceptScore(judge, rows["image"], rows["name"], rows["style"], NAMES)
    wanted = [0, 0, 1, 1, 2, 2]
    assert score.by_pixels(rows["image"], wanted).tolist() == [True] * 6
    assert score.by_pixels(rows["image"], [1, 0, 1, 1, 0, 2]).tolist() == [False, True, True, True, False, True]
    assert score.pixel_chance(wanted) == pytest.approx(1 / 3)
    features, texts = (
        judge.embed_images(rows["image"]),
        [
            np.mean([judge.embed_texts([f"a {style} emoji of {name}"])[0] for style in STYLES], axis=0)
            for name in NAMES
        ],
    )
    cosine = features @ np.stack(texts).T / np.linalg.norm(texts, axis=1)
    assert score.by_judge(rows["image"], wanted).tolist() == (cosine.argmax(1) == wanted).tolist()


def test_the_command(data, capsys):
    pipe = build_tiny_class_pipeline(id2label=dict(enumerate((*NAMES, "cat", "dog"))))
    pipe.save_pretrained(data / "run" / "pipeline")
    judge = build_clip(data / "clip")
    main([str(data / "run" / "pipeline"), "--judge", judge, "--per-class", "2", "--output", str(data / "results")])
    out = capsys.readouterr().out
    assert "Concepts: run on food and drink, train" in out and "real, through the codes" in out
    saved = json.loads((data / "results" / "results.json").read_text(encoding="utf-8"))
    model = saved["results"][0]["scores"]
    assert {name: (score["count"], score["chance"]) for name, score in model.items()} == {
        "top1": (6, pytest.approx(1 / 3)),
        "nearest_by_pixels": (6, pytest.approx(1 / 3)),
    }
    assert Image.open(data / "results" / "concepts.png").copy().size == (2 * 130, 3 * 130)


def test_errors_are_one_line(data):
    build_tiny_class_pipeline().save_pretrained(data / "pipeline")
    with pytest.raises(SystemExit, match=": `judge` nowhere can't be loaded"):
        main([str(data / "pipeline"), "--judge", "nowhere"])
