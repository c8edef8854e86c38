"""What vLLM-Omni's adapter for diffusers does with a pipeline, done without it (docs/vllm-omni.md)."""

import inspect

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tiny_models import build_tiny_pipeline

from uniwetok_hf.remote_code import add_code


# What a request may hold, besides much that no image pipeline takes. Arguments that a pipeline lacks are left out.
REQUEST = {
    "height": 64,
    "width": 96,
    "num_inference_steps": 2,
    "guidance_scale": 2.0,
    "num_images_per_prompt": 2,
    "output_type": "pil",
    "num_frames": 1,
    "do_classifier_free_guidance": False,
    "max_sequence_length": 512,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    build_tiny_pipeline().save_pretrained(folder)
    add_code(folder)
    return folder


@pytest.mark.parametrize("kind", ["text-to-image", "edit"])
def test_a_request_of_the_adapter(folder, kind):
    options = {"custom_pipeline": "pipeline_uniwetok_edit"} if kind == "edit" else {}
    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, trust_remote_code=True, **options)
    pipe.to(torch.device("cpu"))
    pipe.set_progress_bar_config(disable=True)
    accepted = set(inspect.signature(pipe.__call__).parameters)
    given = {"prompt": "a cat", **REQUEST} | ({"image": Image.new("RGB", (96, 64), "red")} if kind == "edit" else {})
    call = {name: value for name, value in given.items() if name in accepted}
    assert given.keys() - call.keys() == {"num_frames", "do_classifier_free_guidance", "max_sequence_length"}
    with torch.inference_mode():
        images = pipe(**call, generator=torch.Generator().manual_seed(0)).images
    assert [image.size for image in images] == [(96, 64)] * 2
    again = pipe(**call, generator=torch.Generator().manual_seed(0)).images
    assert [image.tobytes() for image in images] == [image.tobytes() for image in again]
    assert not hasattr(pipe, "transformer")
