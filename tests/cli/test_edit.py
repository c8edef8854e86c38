"""`uniwetok edit`, end to end."""

from collections import Counter

import numpy as np
from PIL import Image
from tiny_images import pixels
from tiny_mllm import seeded

from uniwetok_hf import UniWeTokEditPipeline, UniWeTokImageProcessor, UniWeTokModel
from uniwetok_hf.cli import sampling
from uniwetok_hf.data import images


def test_edit_is_the_pipeline(succeeds, make_picture, pipeline_folder, pipeline):
    source = make_picture("hand.png", 60, 90)
    lines = succeeds("edit", source, "make it blue", "--model", pipeline_folder, "--num-images", 2, "--seed", 4)
    assert lines == ["hand-make-it-blue-4.png", "hand-make-it-blue-5.png"]
    edit = UniWeTokEditPipeline.from_pipe(pipeline)
    edit.set_progress_bar_config(disable=True)
    for seed, name in zip((4, 5), lines, strict=True):
        expected = edit(Image.open(source).copy(), "make it blue", generator=[seeded(seed)]).images[0]
        assert expected.size == (60, 90)  # without the padding
        assert (pixels(name) == np.asarray(expected)).all()


def test_edit_with_less_weight_of_the_picture(succeeds, photo, pipeline_folder, pipeline):
    options = ["--guidance-scale", 4, "--image-guidance-scale", 1.5]
    (path,) = succeeds("edit", photo, "blue", "--model", pipeline_folder, *options)
    edit = UniWeTokEditPipeline.from_pipe(pipeline)
    edit.set_progress_bar_config(disable=True)
    plain = {"guidance_scale": 4.0}
    scales = plain | {"image_guidance_scale": 1.5}
    edited = [
        edit(Image.open(photo).copy(), "blue", generator=[seeded(0)], **call).images[0] for call in (scales, plain)
    ]
    expected, other = (np.asarray(picture) for picture in edited)
    assert (pixels(path) == expected).all() and (pixels(path) != other).any()


def test_edit_that_is_described_first(uniwetok, succeeds, photo, pipeline_folder, pipeline):
    edit = UniWeTokEditPipeline.from_pipe(pipeline)
    edit.set_progress_bar_config(disable=True)
    output = edit(Image.open(photo).copy(), "blue", describe_first=True, generator=[seeded(0)])
    expected = np.asarray(output.images[0])
    asked = ("edit", photo, "blue", "--model", pipeline_folder)
    result = uniwetok(*asked, "--num-images", 2, "--describe-first")
    assert (result.code, result.err) == (0, [f"described as: {output.descriptions[0]}"])
    assert (pixels(result.out[0]) == expected).all()
    (plain,) = succeeds(*asked, "--no-describe-first", "--output", "b.png")
    assert (pixels(plain) != expected).any()


def test_edit_of_a_given_size(succeeds, photo, pipeline_folder):
    succeeds("edit", photo, "blue", "--model", pipeline_folder, "--height", 32, "--output", "small.png")
    assert pixels("small.png").shape == (32, 128, 3)


def test_edit_depends_on_picture_and_instruction(succeeds, make_picture, pipeline_folder):
    for name, seed in (("a.png", 0), ("b.png", 1)):
        make_picture(name, 64, 64, seed)
    results = []
    for name, instruction in (("a.png", "blue"), ("b.png", "blue"), ("a.png", "red")):
        (path,) = succeeds("edit", name, instruction, "--model", pipeline_folder)
        results.append(pixels(path))
    assert (results[0] != results[1]).any() and (results[0] != results[2]).any()


def test_source_that_the_model_cannot_read(fails, make_picture, pipeline_folder):
    make_picture("huge.png", 600, 40)
    message = fails("edit", "huge.png", "blue", "--model", pipeline_folder)
    assert message.startswith("huge.png: `width` must be a multiple of 32 from 32 to 512 pixels, got 608")


def test_a_picture_is_read_preprocessed_and_encoded_once(uniwetok, make_picture, pipeline_folder, monkeypatch):
    """Several results, a description, and three branches of guidance, in two batches."""
    make_picture("hand.png", 60, 90)
    counts = Counter()
    owners = (images, "read_image"), (UniWeTokImageProcessor, "preprocess"), (UniWeTokModel, "encode")
    for owner, name in owners:

        def counted(*args, name=name, original=getattr(owner, name), **kwargs):
            counts[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
    monkeypatch.setattr(sampling, "BATCH_SIZE", 2)
    options = ["--num-images", 3, "--describe-first", "--guidance-scale", 3, "--image-guidance-scale", 2]
    assert len(uniwetok("edit", "hand.png", "make it blue", "--model", pipeline_folder, *options).out) == 3
    assert counts == {"read_image": 1, "preprocess": 1, "encode": 1}
    uniwetok("describe", "hand.png", "--model", pipeline_folder, "--max-new-tokens", 3)
    assert counts == {"read_image": 2, "preprocess": 2, "encode": 2}
