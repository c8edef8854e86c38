"""transformers finds the model once the package is imported: Auto classes, pipelines, `transformers serve`."""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
from PIL import Image
from tiny_mllm import build, processor
from transformers import AutoModelForMultimodalLM, AutoModelForPreTraining, pipeline
from transformers.models.auto import modeling_auto
from transformers.pipelines import any_to_any

from uniwetok_hf import UniWeTokForCausalLM
from uniwetok_hf.remote_code import add_code


@pytest.fixture(params=[1, 2], ids=["single tokens", "patches"])
def patch_size(request) -> int:
    return request.param


@pytest.fixture
def folder(tmp_path, patch_size) -> str:
    """Model and processor side by side, as `push_to_hub` of the two into one repository leaves them."""
    build(patch_size).save_pretrained(tmp_path)
    processor(patch_size).save_pretrained(tmp_path)
    return str(tmp_path)


def question(patch_size: int) -> list[dict]:
    picture = Image.linear_gradient("L").convert("RGB").resize((64 * patch_size, 32 * patch_size))
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "what?"}]}]


def asked(patch_size: int, messages: list[dict], **options) -> dict:
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True} | options
    return dict(processor(patch_size).apply_chat_template(messages, **options))


# --- Auto classes ---


@pytest.mark.parametrize("auto_class", [AutoModelForMultimodalLM, AutoModelForPreTraining])
def test_auto_classes_of_models_like_ours_load_a_folder(folder, auto_class):
    assert type(auto_class.from_pretrained(folder)) is UniWeTokForCausalLM


def test_tables_of_names_are_still_whole():
    """An entry without a module of transformers must not break those who go through a table."""
    mapping = modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING
    assert "UniWeTokForCausalLM" in modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.values()
    assert UniWeTokForCausalLM in mapping.values()
    assert len(mapping) == len(mapping.keys()) == len(mapping.items())


# --- pipeline("any-to-any") ---


@pytest.fixture
def any_pipeline(folder, device, monkeypatch):
    """The pipeline asks for torchvision whenever a model takes pictures; nothing that it does with ours needs it."""
    monkeypatch.setattr(any_to_any, "requires_backends", lambda *arguments: None)
    return pipeline("any-to-any", model=folder, device=device)


@torch.no_grad()
def test_any_to_any_answers_about_a_picture(any_pipeline, patch_size, device, caplog):
    assert type(any_pipeline.model) is UniWeTokForCausalLM
    [answer] = any_pipeline(text=question(patch_size), max_new_tokens=6, return_full_text=False)
    inputs = {name: value.to(device) for name, value in asked(patch_size, question(patch_size)).items()}
    ids = any_pipeline.model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    assert answer["generated_text"] == processor(patch_size).decode(ids, skip_special_tokens=True)
    assert "not supported" not in caplog.text


@torch.no_grad()
def test_any_to_any_generates_a_picture(any_pipeline, patch_size, device):
    messages = [{"role": "user", "content": [{"type": "text", "text": "a blue heart"}]}]
    height, width = 32 * patch_size, 64 * patch_size
    settings = {"guidance_scale": 2.0, "num_inference_steps": 2}

    def options() -> dict:
        return settings | {"generator": torch.Generator().manual_seed(0)}

    torch.manual_seed(0)  # of the decoder's noise
    [answer] = any_pipeline(
        text=messages, generation_mode="image", height=height, width=width, generate_kwargs=options()
    )
    picture = answer["generated_image"]
    assert isinstance(picture, Image.Image) and picture.size == (width, height)

    inputs, negative = processor(patch_size).generation_inputs(["a blue heart"], height, width)
    codes = any_pipeline.model.generate_codes(
        **inputs.to(device), negative_input_ids=negative["input_ids"].to(device), **options()
    ).codes
    torch.manual_seed(0)
    pixels = any_pipeline.model.decode_image_tokens(codes)
    assert picture == processor(patch_size).image_processor.postprocess(pixels)[0]


def test_a_picture_without_a_size_is_refused(any_pipeline):
    messages = [{"role": "user", "content": "a heart"}]
    with pytest.raises(ValueError, match="`height` and `width`"):
        any_pipeline(text=messages, generation_mode="image")


# --- transformers serve ---

SERVE = "import uniwetok_hf; from transformers.cli.transformers import main; main()"


def test_serve_loads_the_model_and_knows_that_it_reads_pictures(folder, patch_size):
    pytest.importorskip("openai", reason="transformers serve needs it")
    from transformers.cli.serving.model_manager import ModelManager

    manager = ModelManager(device="cpu", model_timeout=-1)
    model, loaded = manager.load_model_and_processor(f"{folder}@main")
    assert type(model) is UniWeTokForCausalLM
    assert manager.get_model_modality(model, loaded).name == "MULTIMODAL"
    manager.shutdown()


WITHOUT_PACKAGE = """
import sys

class Blocked:
    def find_spec(self, name, *arguments):
        if name.split(".")[0] == "uniwetok_hf":
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
from transformers.cli.serving.model_manager import ModelManager

manager = ModelManager(device="cpu", model_timeout=-1, trust_remote_code=True)
model, processor = manager.load_model_and_processor(sys.argv[1] + "@main")
print(type(model).__name__, manager.get_model_modality(model, processor).name)
manager.shutdown()
"""


@pytest.mark.slow
def test_serve_takes_the_code_of_a_repository_when_it_is_trusted(folder, tmp_path_factory, patch_size):
    """`transformers serve REPOSITORY@with-code --trust-remote-code`, where this package is not installed."""
    pytest.importorskip("openai", reason="transformers serve needs it")
    add_code(folder)
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path_factory.mktemp("modules"))}
    command = [sys.executable, "-c", WITHOUT_PACKAGE, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["UniWeTokForCausalLM", "MULTIMODAL"], done.stderr


@pytest.mark.slow
def test_serve_answers_about_a_picture(folder, patch_size, tmp_path_factory):
    """The server in a process of its own, started as docs/conversation.md shows it."""
    pytest.importorskip("openai", reason="transformers serve needs it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVE, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = (tmp_path_factory.mktemp("serve") / "log").open("w+b")
    content = io.BytesIO()
    question(patch_size)[0]["content"][0]["image"].save(content, "PNG")
    url = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
    items = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
    body = {"model": folder, "messages": [{"role": "user", "content": items}], "max_tokens": 6, "stream": False}
    with log, subprocess.Popen([*command, folder], stdout=log, stderr=log) as server:
        try:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            for _ in range(300):
                try:
                    with urllib.request.urlopen(request, timeout=60) as response:
                        answer = json.load(response)
                    break
                except urllib.error.URLError as error:
                    assert not hasattr(error, "code"), error.read()
                    assert server.poll() is None, log.seek(0) or log.read()
                    time.sleep(1)
        finally:
            server.terminate()
    model = UniWeTokForCausalLM.from_pretrained(folder)
    inputs = asked(patch_size, question(patch_size))
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = processor(patch_size).decode(ids, skip_special_tokens=True)
    assert answer["choices"][0]["message"]["content"] == expected
