"""The web page without a browser; `test_web_app_browser.py` has one."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_mllm import with_random_weights
from tiny_models import build_tiny_pipeline

from uniwetok_hf import UniWeTokEditPipeline, web_app
from uniwetok_hf.web_app import LARGEST_SIDE, Studio, read_upload


@pytest.fixture(scope="module")
def studio() -> Studio:
    pipe = build_tiny_pipeline(1)
    with_random_weights(pipe.mllm)
    pipe.register_to_config(default_size=128)
    return Studio(pipe)


def picture(width: int = 64, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_generation_shows_previews_and_then_the_pipelines_picture(studio):
    shown = list(studio.generate("red apple", 3, 2, 2.0))
    assert [details for _, details in shown[:-1]] == [f"{count} of 16 patches" for count in (4, 8, 12)]
    assert shown[-1][1].startswith("128 x 128 pixels in ")
    same = studio.pipe(
        "red apple", num_inference_steps=2, guidance_scale=2.0, generator=torch.Generator().manual_seed(3)
    ).images[0]
    assert shown[-1][0].tobytes() == same.tobytes()


def test_editing_gives_the_edit_pipelines_picture(studio):
    shown = list(studio.edit(picture(), "make it green", 1, 2, 2.0))
    same = studio.edit_pipe(
        picture(),
        "make it green",
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    assert shown[-1][0].tobytes() == same.tobytes()


def test_edits_and_their_previews_come_without_the_padding(studio):
    sizes = [shown.size for shown, _ in studio.edit(picture(60, 90), "make it green", 1, 1, 2.0)]
    assert len(sizes) > 1 and set(sizes) == {(60, 90)}


def test_editing_shows_the_description(studio, monkeypatch):
    *_, (_, plain) = studio.edit(picture(), "make it green", 1, 1, 2.0)
    (description,) = studio.edit_pipe.describe_results([picture()], ["make it green"])
    described = UniWeTokEditPipeline.from_pipe(studio.pipe, default_describe_first=True)
    described.set_progress_bar_config(disable=True)
    monkeypatch.setattr(studio, "edit_pipe", described)
    *_, (_, details) = studio.edit(picture(), "make it green", 1, 1, 2.0)
    assert plain.startswith("64 x 64 pixels") and details.startswith(f"{description}; 64 x 64 pixels")


def test_closing_stops_the_work(studio):
    before = threading.active_count()
    generation = studio.generate("red apple", 0, 2, 2.0)
    next(generation)
    generation.close()
    assert threading.active_count() == before
    assert len(list(studio.generate("red apple", 0, 2, 2.0))) == 4  # the next one is whole


def test_reconstruction(studio):
    back, planes, details = studio.reconstruct(picture(64, 96), 0)
    assert back.size == (64, 96)
    assert details == "64 x 96 pixels, 3 x 2 tokens, 12 bytes"
    assert set(np.unique(np.asarray(planes))) <= {0, 200, 255}


def test_conversations_do_not_mix(studio):
    ours, theirs = (list(studio.converse(None, words, [], 0))[-1] for words in ("draw", "what is it?"))
    assert ours[3] and theirs[3] and ours[0] is not theirs[0]
    assert ours[0].messages[0]["content"][0]["text"] == "draw"
    again = list(studio.converse(ours[0], "and now?", [picture()], 1))[-1]
    assert again[0] is ours[0] and len(ours[0].messages) == 4 and len(theirs[0].messages) == 2


def test_the_last_conversations_keep_what_was_read(studio, monkeypatch):
    monkeypatch.setattr(web_app, "MOST_CACHES", 2)
    talks = [list(studio.converse(None, "draw", [], 0))[-1][0] for _ in range(3)]
    lengths = [talk._cache.get_seq_length() for talk in talks]
    assert lengths[0] == 0 < min(lengths[1:])
    for talk in (talks[0], talks[2]):
        list(studio.converse(talk, "and now?", [], 1))
    assert [talk._cache.get_seq_length() > 0 for talk in talks] == [True, False, True]


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (lambda studio: list(studio.generate(" ", 0, 2, 2.0)), "Write what to generate"),
        (lambda studio: list(studio.edit(picture(), "", 0, 2, 2.0)), "Write what to change"),
        (lambda studio: list(studio.describe(picture(), "")), "Write a question"),
        (lambda studio: list(studio.generate("a <|im_end|>", 0, 2, 2.0)), "must not hold the special tokens"),
    ],
)
def test_bad_input_gets_a_sentence(studio, job, words):
    with pytest.raises(ValueError, match=words):
        job(studio)


def test_uploads(tmp_path):
    picture(2000, 1000).save(tmp_path / "large.png")
    assert read_upload(str(tmp_path / "large.png")).size == (LARGEST_SIDE, LARGEST_SIDE // 2)
    (tmp_path / "words.png").write_text("no picture")
    with pytest.raises(ValueError, match="^This file can't be used: it must be one of PNG, JPEG, .*$"):
        read_upload(str(tmp_path / "words.png"))
    with pytest.raises(ValueError, match="Choose a picture first"):
        read_upload(None)
