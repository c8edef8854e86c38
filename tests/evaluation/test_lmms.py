"""The chat model for lmms-eval. That package wants an environment of its own (docs/benchmarks.md): without it these
tests are skipped."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image
from tiny_models import build_tiny_pipeline


pytest.importorskip("lmms_eval", reason="lmms-eval is not installed here, see docs/benchmarks.md")

from lmms_eval.models.registry_v2 import ModelRegistryV2  # noqa: E402

from uniwetok_hf.evaluation.lmms import UniWeTokLmms, _cut, manifest  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    build_tiny_pipeline().save_pretrained(folder)
    return folder


def requests_of(model: UniWeTokLmms, contents: list[list[dict]], **options) -> list:
    model.task_dict = {"task": {"test": contents}}

    def to_messages(content):
        return [{"role": "user", "content": content}]

    return [SimpleNamespace(args=("", to_messages, options, i, "task", "test")) for i in range(len(contents))]


def picture(red: int) -> dict:
    return {"type": "image", "url": Image.new("RGB", (64, 64), (red, 90, 30))}


def words(text: str) -> dict:
    return {"type": "text", "text": text}


def test_the_registry_finds_it():
    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    assert registry.get_model_class("uniwetok") is UniWeTokLmms


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_come_in_the_order_of_the_requests(folder, batch_size):
    model = UniWeTokLmms(str(folder), "cpu", batch_size=batch_size)
    contents = [[picture(70 * i), words("what is this?")] for i in range(3)] + [[words("hello")]]
    requests = requests_of(model, contents, max_new_tokens=4)
    answers = model.generate_until(requests)
    assert len(answers) == 4
    assert answers == [model.generate_until([request])[0] for request in requests]


def test_pictures_are_drawn_and_edited(folder, tmp_path):
    model = UniWeTokLmms(str(folder), "cpu", output="image", output_dir=tmp_path / "out")
    answers = model.generate_until(requests_of(model, [[words("a cat")], [picture(9), words("make it red")]]))
    for number, answer in enumerate(answers):
        found = json.loads(answer)
        assert found == {"text": "", "images": [str(tmp_path / "out" / f"{number:06d}.png")]}
        assert Image.open(found["images"][0]).copy().size == (64, 64)


def test_what_it_can_not_read(folder):
    model = UniWeTokLmms(str(folder), "cpu")
    with pytest.raises(ValueError, match="reads text and images, this task shows video"):
        model.generate_until(requests_of(model, [[{"type": "video", "url": "a.mp4"}]]))
    with pytest.raises(ValueError, match="`output` must be one of"):
        UniWeTokLmms(str(folder), "cpu", output="video")


def test_answers_end_where_a_task_says():
    assert _cut("a cat. Question: what", ["Question:", "\n"]) == "a cat."
    assert _cut(" a cat ", ["\n\n"]) == "a cat"
