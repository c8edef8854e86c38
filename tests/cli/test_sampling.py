"""What `uniwetok generate` and `edit` share, end to end."""

import numpy as np
import pytest
import torch
from tiny_images import pixels
from tiny_mllm import seeded
from tiny_models import build_tiny_mllm

from uniwetok_hf import UniWeTokPipeline
from uniwetok_hf.adapters import lora_config, save_adapter
from uniwetok_hf.cli import sampling


def test_a_picture_does_not_depend_on_its_batch(succeeds, pipeline_folder, monkeypatch):
    model = ["--model", pipeline_folder]
    # More pictures than are drawn at once, and prompts of different lengths.
    together = succeeds(
        "generate", "apple", "a longer prompt", "--num-images", 5, "--seed", 2, "--output", "all", *model
    )
    assert together == [f"all/{prompt}-{seed}.png" for prompt in ("apple", "a-longer-prompt") for seed in range(2, 7)]
    for prompt, seed in (("apple", 2), ("apple", 6), ("a longer prompt", 4)):
        (alone,) = succeeds("generate", prompt, "--seed", seed, "--output", "alone", *model)
        assert (pixels(alone) == pixels(alone.replace("alone", "all"))).all()
    assert (pixels("all/apple-2.png") != pixels("all/apple-3.png")).any()
    assert (pixels("all/apple-4.png") != pixels("all/a-longer-prompt-4.png")).any()


@pytest.mark.parametrize("command", [["generate", "apple"], ["edit", "photo.png", "blue"]])
def test_sizes_that_the_model_cannot_draw(fails, photo, pipeline_folder, command):
    words = "must be a multiple of 32 from 32 to 512 pixels, got"
    model = ["--model", pipeline_folder]
    assert f"`height` {words} 100" in fails(*command, "--height", 100, *model)
    assert f"`width` {words} 544" in fails(*command, "--width", 544, *model)


def test_bad_input(fails, photo, pipeline_folder):
    model = ["--model", pipeline_folder]
    assert fails("generate", "apple", " ", *model) == "PROMPT is empty"
    assert fails("edit", photo, "", *model) == "INSTRUCTION is empty"
    assert fails("edit", "missing.png", "blue", *model) == "missing.png: no such file"
    assert "would overwrite" in fails("edit", photo, "blue", "--output", photo, *model)
    assert "2 pictures" in fails("generate", "a", "--num-images", 2, "--output", "one.png", *model)
    assert fails("generate", "a", "--device", "toaster", *model).startswith("--device toaster: ")
    for command in (("generate",), ("edit", photo)):
        assert "are more than the 1024 that the model's positions reach" in fails(*command, "a heart " * 3000, *model)
        assert "must not hold the special tokens <|im_end|>" in fails(*command, "a <|im_end|>", *model)


def test_bugs_in_the_pipeline_keep_their_traceback(uniwetok, pipeline_folder, monkeypatch):
    def stumble(self, codes, generator, output_type):
        raise ValueError("a bug")

    monkeypatch.setattr(UniWeTokPipeline, "decode", stumble)
    result = uniwetok("generate", "apple", "--model", pipeline_folder)
    assert result.code == 1 and "Traceback" in result.err[0] and "in stumble" in "\n".join(result.err)


def test_pictures_are_saved_as_they_come(uniwetok, pipeline_folder, workplace, monkeypatch):
    monkeypatch.setattr(sampling, "BATCH_SIZE", 1)
    draw_first = UniWeTokPipeline.decode

    def stop_at_second(self, *arguments):
        if (workplace / "apple-0.png").exists():
            raise KeyboardInterrupt
        return draw_first(self, *arguments)

    monkeypatch.setattr(UniWeTokPipeline, "decode", stop_at_second)
    result = uniwetok("generate", "apple", "--num-images", 2, "--model", pipeline_folder)
    assert (result.code, result.out) == (130, ["apple-0.png"])
    assert [path.name for path in workplace.iterdir()] == ["apple-0.png"]


def test_drawn_with_adapters(succeeds, fails, pipeline_folder, pipeline, workplace):
    for name, seed in (("one", 1), ("two", 2)):
        mllm = build_tiny_mllm()
        mllm.add_adapter(lora_config(r=2))
        with torch.no_grad():
            for parameter in (p for p in mllm.parameters() if p.requires_grad):
                parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed)))
        save_adapter(mllm, workplace / name)
    model = ["--model", pipeline_folder]
    plain = pixels(*succeeds("generate", "apple", *model, "--output", "plain.png"))
    one = pixels(*succeeds("generate", "apple", *model, "--output", "one.png", "--lora", "one"))
    off = pixels(*succeeds("generate", "apple", *model, "--output", "off.png", "--lora", "one:0"))
    both = pixels(*succeeds("generate", "apple", *model, "--output", "both.png", "--lora", "one", "--lora", "two:0.5"))
    assert (off == plain).all() and (one != plain).any() and (both != one).any()
    pipeline = UniWeTokPipeline.from_pretrained(pipeline_folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights("one", adapter_name="one")
    pipeline.load_lora_weights("two", adapter_name="two")
    pipeline.set_adapters(["one", "two"], [1.0, 0.5])
    assert (both == np.asarray(pipeline("apple", generator=[seeded(0)]).images[0])).all()
    succeeds("edit", "one.png", "blue", *model, "--lora", "one", "--output", "edited.png")
    message = fails("generate", "apple", *model, "--lora", "nowhere:0.5")
    assert "--lora: `pretrained_model_name_or_path` nowhere is no adapter" in message
    assert "there is no such folder, and on the Hub names are org/name" in message
    (workplace / "run").mkdir()
    (workplace / "one").rename(workplace / "run" / "adapter")
    assert "run/adapter is what the training made" in fails("generate", "apple", *model, "--lora", "run")


def test_weights_of_adapters():
    for text, parsed in {
        "a/b": ("a/b", 1.0),
        "a/b:0.5": ("a/b", 0.5),
        "a:b": ("a:b", 1.0),
        "a:-2": ("a", -2.0),
        "a:nan": ("a:nan", 1.0),
        r"C:\a": (r"C:\a", 1.0),
        r"C:\a:2": (r"C:\a", 2.0),
        ":2": (":2", 1.0),
    }.items():
        assert sampling.adapter(text) == parsed
