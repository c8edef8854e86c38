"""The nodes for ComfyUI, without it: what it reads of a node, and tensors in and out (docs/comfyui.md)."""

import importlib.util
import inspect
import json
from pathlib import Path

import pytest
import torch
from tiny_models import build_tiny_pipeline

from uniwetok_hf.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS


FOLDER = Path(__file__).parents[2] / "examples" / "comfyui"
WORKFLOW = json.loads((FOLDER / "workflow.json").read_text(encoding="utf-8"))
OURS = {key: node for key, node in WORKFLOW.items() if node["class_type"] in NODE_CLASS_MAPPINGS}


@pytest.fixture(scope="module")
def model():
    return build_tiny_pipeline()


@pytest.fixture
def image():
    """Two pictures, with values that are slightly out of range."""
    return torch.rand(2, 64, 48, 3, generator=torch.Generator().manual_seed(0)) * 1.02 - 0.01


def run(node_name: str, /, **inputs):
    """A node as ComfyUI runs it."""
    node = NODE_CLASS_MAPPINGS[node_name]
    results = getattr(node(), node.FUNCTION)(**inputs)
    assert isinstance(results, tuple) and len(results) == len(node.RETURN_TYPES)
    return results[0]


def assert_image(image: torch.Tensor, *shape: int) -> None:
    assert image.shape == shape and image.dtype == torch.float32 and image.device.type == "cpu"
    assert image.min() >= 0 and image.max() <= 1


def test_the_folder_gives_comfyui_the_nodes():
    spec = importlib.util.spec_from_file_location("uniwetok_nodes", FOLDER / "__init__.py")
    folder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(folder)
    assert folder.NODE_CLASS_MAPPINGS is NODE_CLASS_MAPPINGS
    assert folder.NODE_DISPLAY_NAME_MAPPINGS.keys() == NODE_CLASS_MAPPINGS.keys()
    assert len(set(NODE_DISPLAY_NAME_MAPPINGS.values())) == len(NODE_CLASS_MAPPINGS)


@pytest.mark.parametrize("name", NODE_CLASS_MAPPINGS)
def test_a_node_takes_what_it_says(name):
    node = NODE_CLASS_MAPPINGS[name]
    inputs = node.INPUT_TYPES()["required"]
    parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
    assert list(parameters) == ["self", *inputs]
    for kind, *options in inputs.values():
        assert isinstance(kind, str | list) and len(options) <= 1
    assert len(getattr(node, "OUTPUT_IS_LIST", node.RETURN_TYPES)) == len(node.RETURN_TYPES)
    assert node.CATEGORY


def test_the_workflow_joins_what_fits():
    assert {node["class_type"] for node in OURS.values()} == NODE_CLASS_MAPPINGS.keys()
    for node in OURS.values():
        wanted = NODE_CLASS_MAPPINGS[node["class_type"]].INPUT_TYPES()["required"]
        assert node["inputs"].keys() == wanted.keys()
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                source = NODE_CLASS_MAPPINGS[WORKFLOW[value[0]]["class_type"]]
                assert source.RETURN_TYPES[value[1]] == wanted[name][0]


def test_a_model_by_name_and_by_folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    for name in ("uniwetok-emoji", str(tmp_path)):
        loaded = run("UniWeTokLoadModel", name=name, device="cpu")
        assert loaded.mllm.dtype == torch.float32
    assert loaded.config.default_size == model.config.default_size


def test_text_to_image(model):
    options = {"model": model, "prompt": "a cat", "steps": 0, "guidance_scale": 0.0}
    batch = run("UniWeTokTextToImage", **options, seed=5, width=0, height=0, batch_size=2)
    assert_image(batch, 2, 64, 64, 3)
    alone = run("UniWeTokTextToImage", **options, seed=6, width=0, height=0, batch_size=1)
    assert torch.allclose(batch[1], alone[0], atol=1 / 255)
    wide = run("UniWeTokTextToImage", **options, seed=2**64 - 1, width=96, height=32, batch_size=2)
    assert_image(wide, 2, 32, 96, 3)
    assert not torch.equal(run("UniWeTokTextToImage", **options | {"guidance_scale": 9.0}, seed=6)[0], alone[0])


@pytest.mark.parametrize("channels", [3, 4])
def test_pictures_go_in(model, image, channels):
    """An edit has the size of its source; what is read of a picture does not depend on its batch."""
    if channels == 4:
        image = torch.cat([image, torch.ones_like(image[..., :1])], dim=-1)
    edited = run("UniWeTokEditImage", model=model, image=image, instruction="red", seed=0)
    assert_image(edited, 2, 64, 48, 3)
    answers = run("UniWeTokDescribeImage", model=model, image=image, question="what is it?", max_new_tokens=4)
    assert len(answers) == 2 and all(isinstance(answer, str) for answer in answers)
    codes = run("UniWeTokEncodeImage", model=model, image=image)
    decoded = run("UniWeTokDecodeCodes", model=model, codes=codes, seed=0)
    assert_image(decoded, 2, 64, 48, 3)
    [alone] = run("UniWeTokEncodeImage", model=model, image=image[1:])
    assert torch.equal(alone.codes, codes[1].codes)
