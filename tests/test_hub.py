"""Models, processors and pipelines to a Hub and back, by the classes' own `push_to_hub` and `from_pretrained`."""

import copy
import re
import subprocess
import sys

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors.torch import load
from tiny_models import build_tiny_mllm, build_tiny_pipeline, build_tiny_processor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from uniwetok_hf import (
    UniWeTokEditPipeline,
    UniWeTokForCausalLM,
    UniWeTokImageProcessor,
    UniWeTokMLLMModel,
    UniWeTokModel,
    UniWeTokPipeline,
    UniWeTokProcessor,
)
from uniwetok_hf.hub import upload


def same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def pipeline():
    return build_tiny_pipeline()


def test_image_tokenizer_and_its_image_processor(hub, tiny_model):
    tiny_model.push_to_hub("org/tokenizer")
    UniWeTokImageProcessor(stride=4, size={"height": 8, "width": 8}).push_to_hub("org/tokenizer")
    for name in hub.files("org/tokenizer"):
        assert not name.endswith(".py")
    for model_class in (UniWeTokModel, AutoModel):
        loaded = model_class.from_pretrained("org/tokenizer")
        assert type(loaded) is UniWeTokModel and same_weights(loaded, tiny_model)
    for processor_class in (UniWeTokImageProcessor, AutoImageProcessor):
        loaded = processor_class.from_pretrained("org/tokenizer")
        assert type(loaded) is UniWeTokImageProcessor and (loaded.stride, loaded.size["height"]) == (4, 8)
    assert (
        AutoConfig.from_pretrained("org/tokenizer").to_dict()
        == tiny_model.config.to_dict() | {"_name_or_path": "org/tokenizer"}
        or AutoConfig.from_pretrained("org/tokenizer").num_bits == 16
    )
    info = HfApi().model_info("org/tokenizer")
    assert (info.pipeline_tag, info.library_name) == ("image-feature-extraction", "uniwetok-hf")
    assert "# tokenizer" in hub.files("org/tokenizer")["README.md"].decode()  # the processor's push left it


def test_language_model_and_its_processor(hub):
    mllm, processor = build_tiny_mllm(), build_tiny_processor()
    processor.push_to_hub("org/mllm")  # first: its generic card gives way to ours
    mllm.push_to_hub("org/mllm")
    for model_class in (UniWeTokForCausalLM, AutoModelForCausalLM, AutoModelForImageTextToText):
        loaded = model_class.from_pretrained("org/mllm")
        assert type(loaded) is UniWeTokForCausalLM and same_weights(loaded, mllm)
    base = AutoModel.from_pretrained("org/mllm")
    assert type(base) is UniWeTokMLLMModel and same_weights(base, mllm.model)
    assert same_weights(UniWeTokModel.from_pretrained("org/mllm"), mllm.vision_model)
    for processor_class in (UniWeTokProcessor, AutoProcessor):
        loaded = processor_class.from_pretrained("org/mllm")
        assert type(loaded) is UniWeTokProcessor
        assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    card = ModelCard(hub.files("org/mllm")["README.md"].decode())
    assert card.data.pipeline_tag == "image-text-to-text" and card.data.library_name == "uniwetok-hf"
    assert 'UniWeTokForCausalLM.from_pretrained("org/mllm"' in card.text and "UniWeTokPipeline" not in card.text


def test_pipeline(hub, pipeline):
    pipeline.push_to_hub("org/pipeline")
    files = hub.files("org/pipeline")
    assert hub.history("org/pipeline") == ["Upload UniWeTokPipeline"]
    assert not [name for name in files if name.endswith(".py")]
    loaded = UniWeTokPipeline.from_pretrained("org/pipeline")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.default_size == 64 and same_weights(loaded.mllm, pipeline.mllm)
    generated = [
        pipe("a", generator=torch.Generator().manual_seed(0), output_type="latent").images
        for pipe in (pipeline, loaded)
    ]
    assert torch.equal(*generated)
    assert same_weights(UniWeTokEditPipeline.from_pretrained("org/pipeline").mllm, pipeline.mllm)
    image_tokenizer = UniWeTokModel.from_pretrained("org/pipeline", subfolder="mllm")
    assert same_weights(image_tokenizer, pipeline.mllm.vision_model)
    language_model = AutoModelForCausalLM.from_pretrained("org/pipeline", subfolder="mllm")
    assert same_weights(language_model, pipeline.mllm)
    assert type(AutoProcessor.from_pretrained("org/pipeline", subfolder="processor")) is UniWeTokProcessor
    card = ModelCard(files["README.md"].decode())
    assert card.data.pipeline_tag == "text-to-image" and 'from_pretrained("org/pipeline"' in card.text
    HfApi().delete_repo("org/pipeline")
    UniWeTokEditPipeline.from_pipe(pipeline).push_to_hub("org/pipeline")
    assert same_weights(UniWeTokEditPipeline.from_pretrained("org/pipeline").mllm, pipeline.mllm)


def test_a_part_of_a_repository_keeps_its_card(hub, pipeline):
    pipeline.push_to_hub("org/two")
    pipeline.push_to_hub("org/two", subfolder="second")
    files = hub.files("org/two")
    assert "second/model_index.json" in files and "second/README.md" not in files and "README.md" in files


def test_revisions(hub, make_model):
    first, second = make_model(seed=1), make_model(seed=2)
    sha = first.push_to_hub("org/model").oid
    HfApi().create_tag("org/model", tag="v1")
    second.push_to_hub("org/model", revision="next/try")
    for revision, model in (("main", first), ("v1", first), (sha, first), ("next/try", second)):
        assert same_weights(UniWeTokModel.from_pretrained("org/model", revision=revision), model)
    second.push_to_hub("org/model")
    assert same_weights(UniWeTokModel.from_pretrained("org/model"), second)
    assert same_weights(UniWeTokModel.from_pretrained("org/model", revision="v1"), first)
    with pytest.raises(OSError, match="v2 is not a valid git identifier"):
        UniWeTokModel.from_pretrained("org/model", revision="v2")


def test_private_repositories(hub, pipeline, tmp_path, monkeypatch):
    pipeline.push_to_hub("org/secret", private=True)
    assert hub.repositories["org/secret"].private
    assert same_weights(UniWeTokPipeline.from_pretrained("org/secret").mllm, pipeline.mllm)
    monkeypatch.setenv("HF_TOKEN", "")
    others = {"subfolder": "mllm", "cache_dir": tmp_path / "of_somebody_else"}
    for token in (None, "hf_bob"):
        with pytest.raises(OSError, match="make sure to pass a token having permission"):
            UniWeTokModel.from_pretrained("org/secret", token=token, **others)
    model = UniWeTokModel.from_pretrained("org/secret", token="hf_ada", **others)
    assert same_weights(model, pipeline.mllm.vision_model)


def test_shards_come_and_go_with_their_index(hub, make_model):
    first, second = make_model(seed=1), make_model(seed=2)
    first.push_to_hub("org/model")
    second.push_to_hub("org/model", max_shard_size="20KB")
    names = [name for name in hub.files("org/model") if "safetensors" in name]
    shards = [name for name in names if re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", name)]
    assert len(shards) > 2 and names == [*shards, "model.safetensors.index.json"]  # no model.safetensors of before
    assert same_weights(UniWeTokModel.from_pretrained("org/model"), second)
    first.push_to_hub("org/model")
    assert [name for name in hub.files("org/model") if "safetensors" in name] == ["model.safetensors"]
    assert same_weights(UniWeTokModel.from_pretrained("org/model"), first)


def test_an_upload_that_is_cut_off_publishes_nothing(hub, make_model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between the client's retries
    first, second, third = (make_model(seed=seed) for seed in (1, 2, 3))
    first.push_to_hub("org/model")
    before = hub.files("org/model")
    for request, error in (("PUT /large/", RuntimeError), ("POST .*/commit/", Exception)):
        hub.requests.clear()
        with hub.cut_off(request, after=1 if "PUT" in request else 0), pytest.raises(error):
            second.push_to_hub("org/model", max_shard_size="20KB")
        assert any(re.search(request, seen) for seen in hub.requests)
        assert hub.files("org/model") == before
        assert same_weights(UniWeTokModel.from_pretrained("org/model"), first)
    hub.requests.clear()
    second.push_to_hub("org/model", max_shard_size="20KB")
    assert not [seen for seen in hub.requests if seen.startswith("PUT")]  # all of it had arrived before the commit
    assert same_weights(UniWeTokModel.from_pretrained("org/model"), second)
    with hub.cut_off("PUT /large/"), pytest.raises(RuntimeError):
        third.push_to_hub("org/new")
    assert hub.files("org/new") == {}
    third.push_to_hub("org/new")
    assert same_weights(UniWeTokModel.from_pretrained("org/new"), third)


def test_an_edited_card_on_the_hub_stays(hub, make_model, pipeline):
    make_model(seed=1).push_to_hub("org/model")
    text = hub.files("org/model")["README.md"]
    make_model(seed=2).push_to_hub("org/model", tags=["mine"])
    assert b"- mine" in hub.files("org/model")["README.md"]
    mine = text.replace(b"## Limitations", b"It was trained on cats.\n\n## Limitations").replace(
        b"pipeline_tag: image-feature-extraction\n", b""
    )
    HfApi().upload_file(path_or_fileobj=mine, path_in_repo="README.md", repo_id="org/model")
    make_model(seed=3).push_to_hub("org/model")
    card = ModelCard(hub.files("org/model")["README.md"].decode())
    assert "It was trained on cats." in card.text and card.data.pipeline_tag == "image-feature-extraction"
    UniWeTokImageProcessor(stride=4).push_to_hub("org/filled")  # with a generic card, in which somebody writes
    generic = hub.files("org/filled")["README.md"]
    mine = generic.replace(b"[More Information Needed]", b"Ada", 1)
    assert mine != generic
    HfApi().upload_file(path_or_fileobj=mine, path_in_repo="README.md", repo_id="org/filled")
    make_model(seed=1).push_to_hub("org/filled")
    assert ModelCard(hub.files("org/filled")["README.md"].decode()).text == ModelCard(mine.decode()).text
    HfApi().create_repo("org/pipeline")
    HfApi().upload_file(path_or_fileobj=b"# My pipeline\n", path_in_repo="README.md", repo_id="org/pipeline")
    pipeline.push_to_hub("org/pipeline")
    card = ModelCard(hub.files("org/pipeline")["README.md"].decode())
    assert card.text.strip() == "# My pipeline" and card.data.license == "apache-2.0"


@pytest.mark.parametrize("part", ["pipeline", "mllm", "vision_model"])
def test_the_example_of_a_card_runs(hub, pipeline, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (70, 40), "red").save("photo.jpg")
    pushed = {"pipeline": pipeline, "mllm": pipeline.mllm, "vision_model": pipeline.mllm.vision_model}[part]
    pushed.push_to_hub("org/example")
    (example,) = re.findall(r"```python\n(.*?)```", hub.files("org/example")["README.md"].decode(), re.DOTALL)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    if part == "mllm":
        assert same_weights(names["image_tokenizer"], pipeline.mllm.vision_model)
    else:
        assert names["image"].size == ((64, 64) if part == "pipeline" else (70, 40))


def test_saving_with_a_push_sends_what_was_saved(hub, tiny_model, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("not for everybody")
    tiny_model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="org/model")
    assert sorted(hub.files("org/model")) == ["README.md", "config.json", "model.safetensors"]


def test_a_pipeline_is_saved_and_pushed_at_once(hub, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "emoji", push_to_hub=True, repo_id="org/emoji")
    assert same_weights(UniWeTokPipeline.from_pretrained("org/emoji").mllm, pipeline.mllm)
    half = copy.deepcopy(pipeline).to(torch.float16)
    half.save_pretrained(tmp_path / "half", push_to_hub=True, repo_id="org/emoji", variant="fp16")
    names = [name for name in hub.files("org/emoji") if name.endswith(".safetensors")]
    assert sorted(names) == ["mllm/model.fp16.safetensors", "mllm/model.safetensors"]


def test_refusals_are_readable(hub, tiny_model, tmp_path):
    tiny_model.push_to_hub("org/model")
    with pytest.raises(OSError, match="org/unknown is not a local folder and is not a valid model identifier"):
        UniWeTokModel.from_pretrained("org/unknown")
    with pytest.raises(OSError, match="org/model does not appear to have a file named"):
        UniWeTokModel.from_pretrained("org/model", subfolder="mllm")
    with pytest.raises(OSError, match="You don't have the rights"):
        tiny_model.push_to_hub("org/model", token="hf_bob")
    hub.repositories["org/model"].gated = True
    with pytest.raises(OSError, match="gated repo"):
        UniWeTokModel.from_pretrained("org/model", token="hf_bob", cache_dir=tmp_path / "empty")


def test_without_a_connection_the_cache_serves(hub, tiny_model, monkeypatch):
    tiny_model.push_to_hub("org/model")
    UniWeTokModel.from_pretrained("org/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert same_weights(UniWeTokModel.from_pretrained("org/model"), tiny_model)
    with pytest.raises(OSError, match="couldn't find them in the cached files|offline"):
        UniWeTokModel.from_pretrained("org/unknown")
    assert hub.requests == []


def test_upload_of_chosen_files(hub, tmp_path):
    HfApi().create_repo("org/files")
    (tmp_path / ".hidden").mkdir()
    for name in ("a.txt", "b.txt", ".hidden/c.txt", ".d.txt"):
        (tmp_path / name).write_text(name)
    upload(tmp_path, "org/files", ["a.txt"])
    assert sorted(hub.files("org/files")) == ["a.txt"]
    upload(tmp_path, "org/files", subfolder="more/")
    assert sorted(hub.files("org/files")) == ["a.txt", "more/a.txt", "more/b.txt"]


SCRIPT = """
import torch
from transformers import AutoModel
import uniwetok_hf

pipe = uniwetok_hf.UniWeTokPipeline.from_pretrained("org/pipeline")
assert pipe("a", generator=torch.Generator().manual_seed(0)).images[0].size == (64, 64)
assert type(AutoModel.from_pretrained("org/pipeline", subfolder="mllm")).__module__.startswith("uniwetok_hf.")
pipe.push_to_hub("org/copy")
"""


@pytest.mark.slow
def test_in_a_process_of_its_own(hub, pipeline, tmp_path):
    """What the fixture sets in this process, a user's has from the environment."""
    pipeline.push_to_hub("org/pipeline", private=True)
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, env=hub.environ(tmp_path), timeout=300)
    weights = [hub.files(name)["mllm/model.safetensors"] for name in ("org/pipeline", "org/copy")]
    first, second = map(load, weights)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
