"""`uniwetok generate`, end to end."""

import numpy as np
import pytest
import torch
from tiny_images import pixels
from tiny_mllm import seeded

from uniwetok_hf import UniWeTokClassToImagePipeline


def test_generate_is_the_pipeline(succeeds, pipeline_folder, pipeline):
    assert succeeds("generate", "a Red apple!", "--model", pipeline_folder, "--seed", 7) == ["a-red-apple-7.png"]
    expected = pipeline("a Red apple!", generator=[seeded(7)]).images[0]
    assert expected.size == (64, 64)
    assert (pixels("a-red-apple-7.png") == np.asarray(expected)).all()


def test_options_reach_the_pipeline(uniwetok, pipeline_folder, pipeline):
    options = ["--height", 32, "--width", 96, "--steps", 3, "--guidance-scale", 1.5, "--output", "out/apple.png"]
    result = uniwetok("generate", "apple", "--model", pipeline_folder, *options)
    assert (result.code, result.out) == (0, ["out/apple.png"])
    expected = pipeline(
        "apple", height=32, width=96, num_inference_steps=3, guidance_scale=1.5, generator=[seeded(0)]
    ).images[0]
    assert (pixels("out/apple.png") == np.asarray(expected)).all()


def test_a_size_that_is_not_the_models_own_is_told(uniwetok, pipeline_folder):
    result = uniwetok("generate", "apple", "--model", pipeline_folder, "--height", 32)
    assert result.code == 0 and result.out == ["apple-0.png"]
    told = "uniwetok: warning: 64x32 is not the model's default 64x64: use sizes that it was trained on"
    assert result.err == [told]
    result = uniwetok("generate", "apple", "--model", pipeline_folder, "--height", 64)
    assert result.err == []


def test_prompts_that_differ_in_signs_only_do_not_share_a_file(succeeds, pipeline_folder):
    lines = succeeds("generate", "apple", "apple!", "apple", "--model", pipeline_folder)
    assert lines == ["apple-0.png", "apple-0-2.png"]


# --- classes ---


def test_pictures_of_classes_are_the_pipelines(succeeds, class_folder):
    options = ["--model", class_folder, "--num-images", 2, "--seed", 5, "--steps", 3, "--guidance-scale", 1.5]
    lines = succeeds("generate", "--class", "otter", "--class", "2", *options)
    assert lines == ["otter-5.png", "otter-6.png", "2-5.png", "2-6.png"]
    pipe = UniWeTokClassToImagePipeline.from_pretrained(class_folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 3, "guidance_scale": 1.5}
    for label, seed, name in ((3, 5, "otter-5.png"), (2, 6, "2-6.png")):
        assert (pixels(name) == np.asarray(pipe(label, generator=[seeded(seed)], **call).images[0])).all()


def test_classes_that_are_none(fails, uniwetok, class_folder, pipeline_folder):
    model = ["--model", class_folder]
    assert "no class is called 'oter'; the nearest are 'otter'" in fails("generate", "--class", "oter", *model)
    assert "'crane' is the name of several classes" in fails("generate", "--class", "crane", *model)
    assert "must be from 0 to 4, got 5" in fails("generate", "--class", "5", *model)
    assert "--class takes no --height" in fails("generate", "--class", "1", "--height", 64, *model)
    assert "needs a class-to-image pipeline as --model" in fails("generate", "--class", "1")
    needs = fails("generate", "--class", "1", "--model", pipeline_folder)
    assert "but this command needs a class-to-image pipeline" in needs
    assert "but this command needs a pipeline folder" in fails("generate", "a cat", *model)
    with pytest.raises(SystemExit):
        uniwetok("generate", "a cat", "--class", "1", *model)
    with pytest.raises(SystemExit):
        uniwetok("generate")
