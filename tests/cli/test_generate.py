"""`uniwetok generate`, end to end."""

import numpy as np
from tiny_images import pixels
from tiny_mllm import seeded


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
