"""Text-to-image as blocks of Modular Diffusers."""

import pytest
import torch
from diffusers import ModularPipeline
from diffusers.modular_pipelines import SequentialPipelineBlocks
from tiny_mllm import BITS, seeded
from tiny_models import build_tiny_pipeline

from uniwetok_hf import UniWeTokBlocks, UniWeTokModularPipeline
from uniwetok_hf.pipelines.pipeline_blocks import UniWeTokDecodeStep, UniWeTokGenerateStep


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Of an ordinary pipeline."""
    folder = tmp_path_factory.mktemp("pipeline")
    build_tiny_pipeline(2).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pipe(folder) -> UniWeTokModularPipeline:
    pipe = ModularPipeline.from_pretrained(folder)
    pipe.load_components()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_folder_of_a_pipeline_is_found(folder, pipe):
    assert type(pipe) is UniWeTokModularPipeline and type(pipe.blocks) is UniWeTokBlocks
    assert set(pipe.components) == {"processor", "mllm", "scheduler"} and pipe.null_component_names == []
    assert pipe.config.default_size == 64 and pipe.config.default_guidance_scale == 2.0
    trusted = ModularPipeline.from_pretrained(folder, trust_remote_code=True)  # there is no code to trust
    assert type(trusted) is UniWeTokModularPipeline


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt": ["a cat", "a dog"], "negative_prompt": "a bird", "num_images_per_prompt": 2},
        {"height": 128, "num_inference_steps": 3, "guidance_scale": 4.0, "latents": torch.ones(1, BITS, 4, 2)},
    ],
)
def test_it_gives_what_the_pipeline_gives(pipe, options):
    options = {"prompt": "a cat"} | options
    for output_type in ("latent", "pt"):
        images = pipe(**options, generator=seeded(0), output_type=output_type, output="images")
        wanted = pipe.as_pipeline()(**options, generator=seeded(0), output_type=output_type).images
        assert torch.equal(images, wanted)


def test_blocks_can_be_taken_apart(pipe):
    codes = pipe(prompt="a cat", generator=seeded(0), output="codes")
    assert codes.shape == (1, BITS, 2, 2) and codes.abs().unique().tolist() == [1.0]
    decoder = SequentialPipelineBlocks.from_blocks_dict({"decode": UniWeTokDecodeStep}).init_pipeline()
    decoder.update_components(**pipe.components)
    again = decoder(codes=codes, generator=seeded(1), output_type="pt", output="images")
    assert torch.equal(again, pipe.as_pipeline().decode(codes, seeded(1), "pt"))
    writer = SequentialPipelineBlocks.from_blocks_dict({"generate": UniWeTokGenerateStep}).init_pipeline()
    writer.update_components(**pipe.components, default_size=64)
    writer.set_progress_bar_config(disable=True)
    inputs = pipe(prompt="a cat", output="prompt_inputs")
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "generator": seeded(0)}
    assert torch.equal(writer(prompt_inputs=inputs, **options, output="codes"), codes)


def test_saved_and_loaded(pipe, tmp_path):
    pipe.save_pretrained(str(tmp_path), overwrite_modular_index=True)
    loaded = ModularPipeline.from_pretrained(str(tmp_path))
    assert type(loaded) is UniWeTokModularPipeline and loaded.config.default_num_inference_steps == 2
    loaded.load_components()
    loaded.set_progress_bar_config(disable=True)
    codes, again = (one(prompt="a cat", generator=seeded(0), output="codes") for one in (pipe, loaded))
    assert torch.equal(codes, again)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"prompt": ""}, "prompt"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt"),
        ({"height": 65}, "height"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"latents": torch.zeros(1, BITS, 4, 4)}, "latents"),
        ({"generator": [seeded(0)] * 2}, "generator"),
        ({"output_type": "jpg"}, "output_type"),
    ],
)
def test_wrong_arguments_are_named(pipe, options, named):
    with pytest.raises(ValueError, match=named):
        pipe(**{"prompt": "a cat"} | options)


def test_progress_bar(pipe, capsys):
    pipe.set_progress_bar_config(disable=False)
    pipe(prompt="a cat", num_inference_steps=1)
    assert "1/1" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe(prompt="a cat", num_inference_steps=1)
    assert "1/1" not in capsys.readouterr().err
