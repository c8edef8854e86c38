"""`uniwetok push`, and commands that take what was pushed by its id."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from tiny_models import build_tiny_mllm

from uniwetok_hf import UniWeTokClassToImagePipeline, UniWeTokModel, UniWeTokPipeline, load_codes
from uniwetok_hf.adapters import lora_config, save_adapter
from uniwetok_hf.evaluation.intervals import Score
from uniwetok_hf.evaluation.reports import Report, ScoreRow


def scored(value: float) -> Score:
    return Score(value, 10, (value - 1, value + 1))


@pytest.fixture
def results(workplace):
    """What two evaluations of one model left."""
    for task, metric, value in (("reconstruction", "psnr", 21.5), ("captioning", "f1", 0.25)):
        rows = [ScoreRow({"what": "model"}, {metric: scored(value)}, for_card=True)]
        Report(task, "emoji_mllm/pipeline", "emoji", "test", {"seed": 0}, rows).save(workplace / "results" / task)
    return workplace / "results"


@pytest.fixture
def folder(pipeline_folder, workplace):
    """A copy of the tiny pipeline with the record of its training."""
    copy = workplace / "runs" / "pipeline"
    shutil.copytree(pipeline_folder, copy)
    settings = {"max_train_steps": 2600, "batch_size": 32, "learning_rate": 1e-3, "lr_scheduler": "cosine"}
    settings |= {"data": [{"path": "/home/me/emoji_codes", "task": "emoji_drawing"}], "init_from": None}
    settings |= {"vision_model": "runs/emoji_uniwetok_stage3", "ema_decay": 0.999}
    networks = [{"role": "teacher", "name": "emoji_siglip/model", "weights": []}]
    record = {"format": 1, "is_complete": True, "loss_models": networks, "training": settings}
    (copy / "training.json").write_text(json.dumps(record))
    return copy


def card_of(hub, name, revision="main"):
    return ModelCard(hub.files(name, revision)["README.md"].decode())


def test_a_pipeline_with_its_card(hub, succeeds, folder, results):
    (folder / ".half-written.tmp").write_text("x")
    out = succeeds("push", folder, "org/emoji", "--results", "results", "--datasets", "org/data", "--license", "mit")
    assert re.fullmatch(rf"{hub.url}/org/emoji/commit/[0-9a-f]{{40}}", out[-1]) and len(out) == 1
    files = hub.files("org/emoji")
    assert hub.history("org/emoji") == ["Upload pipeline with uniwetok-hf"]
    here = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    del here[".half-written.tmp"]
    assert files.keys() == here.keys() | {"README.md"} and not (folder / "README.md").exists()
    assert all(files[name] == path.read_bytes() for name, path in here.items())

    card = card_of(hub, "org/emoji")
    assert (card.data.pipeline_tag, card.data.library_name) == ("text-to-image", "uniwetok-hf")
    assert (card.data.license, card.data.datasets) == ("mit", ["org/data"])
    assert {"uniwetok", "image-tokenizer", "text-to-image", "image-editing"} == set(card.data.tags)
    assert card.data.model_name == "emoji"
    scores = {(score.task_name, score.metric_type): score.metric_value for score in card.data.eval_results}
    assert scores == {("reconstruction", "psnr"): 21.5, ("captioning", "f1"): 0.25}
    assert (
        "### Reconstruction: emoji_mllm/pipeline on emoji, test" in card.text and "21.50 [20.50, 22.50]" in card.text
    )
    training = card.text.split("## Training")[1].split("## Evaluation")[0]
    for words in ("| steps | 2,600 |", "emoji_codes (emoji_drawing)", "0.001, cosine", "emoji_siglip/model (teacher)"):
        assert words in training
    assert "/home/me" not in card.text and "not given" not in card.text
    encoder = UniWeTokPipeline.from_pretrained(folder).mllm.vision_model.encoder
    assert f"| parameters, encoder | {sum(p.numel() for p in encoder.parameters()):,} |" in card.text
    assert "| stored as | float32 |" in card.text


def test_pushed_ids_are_models(hub, succeeds, fails, folder, vision_folder, photo, monkeypatch):
    succeeds("push", folder, "pipeline", "--private")  # in one's own namespace
    succeeds("push", vision_folder, "org/vision")
    succeeds("push", folder / "mllm", "org/mllm")
    assert hub.repositories["ada/pipeline"].private and not hub.repositories["org/vision"].private
    assert card_of(hub, "org/vision").data.pipeline_tag == "image-feature-extraction"
    assert card_of(hub, "org/mllm").data.pipeline_tag == "image-text-to-text"
    succeeds("generate", "a", "--model", "ada/pipeline", "--output", "by_id.png")
    succeeds("generate", "a", "--model", folder, "--output", "by_folder.png")
    assert Path("by_id.png").read_bytes() == Path("by_folder.png").read_bytes()
    succeeds("encode", photo, "--model", "org/vision", "--output", "by_id.safetensors")
    succeeds("encode", photo, "--model", vision_folder, "--output", "by_folder.safetensors")
    assert torch.equal(load_codes("by_id.safetensors").codes[0], load_codes("by_folder.safetensors").codes[0])
    assert succeeds("describe", photo, "--model", "ada/pipeline")

    hub.repositories["org/vision"].gated = True
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "of_somebody_else")
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    for name in ("ada/pipeline", "org/unknown"):
        message = fails("generate", "a", "--model", name)
        assert message.startswith(f"{name} is neither a local folder nor a repository on the Hub that you can read")
    assert fails("encode", photo, "--model", "org/vision").startswith("org/vision is a gated repository")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "can't be reached" in fails("generate", "a", "--model", "ada/pipeline")


def test_an_edited_card_is_kept(hub, succeeds, folder, results):
    written = "---\nlicense: mit\ntags:\n- cats\n---\n# Cats\n\nBy hand.\n"
    (folder / "README.md").write_text(written)
    succeeds("push", folder, "org/cats", "--results", results / "captioning")
    assert (folder / "README.md").read_text() == written
    card = card_of(hub, "org/cats")
    assert card.text == "# Cats\n\nBy hand.\n"
    assert (card.data.license, card.data.tags, card.data.pipeline_tag) == ("mit", ["cats"], "text-to-image")
    assert [score.metric_type for score in card.data.eval_results] == ["f1"]

    # Without one in the folder, that on the Hub counts; results that are given anew replace those of the same kind.
    (folder / "README.md").unlink()
    rows = [ScoreRow({"what": "model"}, {"f1": scored(0.75)}, for_card=True)]
    Report("captioning", "emoji_mllm/pipeline", "emoji", "test", {}, rows).save(results / "captioning")
    succeeds("push", folder, "org/cats", "--results", results, "--license", "apache-2.0")
    card = card_of(hub, "org/cats")
    assert card.text == "# Cats\n\nBy hand.\n" and card.data.license == "apache-2.0"
    assert {score.metric_type: score.metric_value for score in card.data.eval_results} == {"f1": 0.75, "psnr": 21.5}


def test_a_card_to_read_before_anything_is_sent(hub, succeeds, fails, folder, results):
    """What is written is what a push would send; put into the folder and changed, it is what the next push sends."""
    assert succeeds("push", folder, "org/emoji", "--results", "results", "--card", "card.md") == ["card.md"]
    assert "org/emoji" not in hub.repositories
    read = Path("card.md").read_text()
    assert sorted(path.name for path in Path().iterdir()) == ["card.md", "results", "runs"]
    succeeds("push", folder, "org/emoji", "--results", "results")
    assert hub.files("org/emoji")["README.md"].decode() == read

    (folder / "README.md").write_text(read.replace("## Training", "By me.\n\n## Training"))
    succeeds("push", folder, "org/emoji", "--results", "results")
    assert "By me." in card_of(hub, "org/emoji").text
    assert "--card runs is a folder" in fails("push", folder, "org/emoji", "--card", "runs")


def test_an_unedited_card_is_filled_in_anew(hub, succeeds, folder, results):
    succeeds("push", folder, "org/emoji", "--results", results, "--license", "mit")
    (folder / "training.json").unlink()
    succeeds("push", folder, "org/emoji")
    card = card_of(hub, "org/emoji")
    assert "Not described by whoever pushed this model." in card.text and "21.50" not in card.text
    assert card.data.license == "mit" and not card.data.eval_results  # the scores were those of other weights


def test_branches(hub, succeeds, folder, vision_folder):
    succeeds("push", vision_folder, "org/vision")
    first = UniWeTokModel.from_pretrained("org/vision")
    succeeds("push", folder / "mllm", "org/vision", "--revision", "with/language")
    assert UniWeTokModel.from_pretrained("org/vision", revision="main").num_parameters() == first.num_parameters()
    assert card_of(hub, "org/vision", "with/language").data.pipeline_tag == "image-text-to-text"
    succeeds("push", folder / "mllm", "org/vision", "--revision", "with/language")
    assert len(hub.history("org/vision", "with/language")) == 2  # the push to main, and one: nothing has changed since


def test_what_is_wrong_is_told_before_anything_is_sent(hub, fails, folder, results, workplace):
    assert fails("push", "nowhere", "org/name") == "nowhere is no folder"
    assert "org/na me" in fails("push", "uniwetok-emoji", "org/na me")
    assert "org/na me" in fails("push", folder, "org/na me")
    assert "there is no results.json" in fails("push", folder, "org/name", "--results", folder)
    Report("editing", "other", "emoji", "test", {}, []).save(results / "other")
    assert "several models: emoji_mllm/pipeline, other" in fails("push", folder, "org/name", "--results", results)
    (results / "other" / "results.json").write_text("{")
    assert "results/other: not as `uniwetok evaluate` writes them" in fails(
        "push", folder, "org/name", "--results", results
    )
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    assert "README.md: its metadata can't be read" in fails("push", folder, "org/name")
    (folder / "README.md").unlink()
    (folder / "training.json").write_text('{"training": {"data": []}}')
    assert "training.json is no training record" in fails("push", folder, "org/name")
    (folder / "training.json").unlink()
    weights = folder / "mllm" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "model.safetensors is damaged or cut off" in fails("push", folder, "org/name")
    shutil.rmtree(folder / "scheduler")
    assert hub.requests == []


def test_without_rights_or_connection(hub, fails, folder, vision_folder, monkeypatch):
    hub.add("org/public", vision_folder)
    before = hub.files("org/public")
    assert fails("push", folder, "org/public", "--private") == (
        "org/public is there already and is public: make it private on the Hub, or drop --private"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    for name in ("org/public", "org/new"):
        message = fails("push", folder, name)
        assert message.startswith(f"your token may not write to {name}: ") and "You don't have the rights" in message
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    assert fails("push", folder, "org/public").startswith("the Hub does not know your token: log in with")
    monkeypatch.setenv("HF_TOKEN", "")
    assert fails("push", folder, "org/public").startswith("pushing to org/public needs a token of yours: log in with")
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    hub.stop()
    try:
        assert fails("push", folder, "org/public").startswith("the connection to the Hub failed (")
    finally:
        hub.start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fails("push", folder, "org/public") == "HF_HUB_OFFLINE is set: nothing can be pushed"
    assert hub.files("org/public") == before and list(hub.repositories) == ["org/public"]


def test_a_push_that_is_cut_off_goes_on(hub, uniwetok, succeeds, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between the client's retries
    for request in ("PUT /large/", "POST .*/commit/"):
        with hub.cut_off(request):
            result = uniwetok("push", folder, "org/emoji")
        assert result.code == 1 and "the connection to the Hub failed (" in result.err[-1]
        assert hub.files("org/emoji") == {}
    hub.requests.clear()
    succeeds("push", folder, "org/emoji")
    assert not [request for request in hub.requests if request.startswith("PUT")]
    pushed, here = UniWeTokPipeline.from_pretrained("org/emoji"), UniWeTokPipeline.from_pretrained(folder)
    weights, expected = pushed.mllm.state_dict(), here.mllm.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert len(HfApi().list_repo_commits("org/emoji")) == 2


def test_code_comes_along_on_request(hub, succeeds, folder):
    succeeds("push", folder, "org/emoji", "--include-code")
    code = hub.files("org/emoji", "with-code")
    assert not any(name.endswith(".py") for name in hub.files("org/emoji"))
    assert {"pipeline_uniwetok.py", "mllm/modeling_uniwetok_mllm.py"} <= code.keys()


def test_an_adapter(hub, succeeds, fails, workplace):
    mllm = build_tiny_mllm()
    mllm.add_adapter(lora_config(r=2))
    save_adapter(mllm, workplace / "adapter", base_model="org/base")
    out = succeeds("push", "adapter", "org/style", "--private")
    assert out[-1].startswith(f"{hub.url}/org/style/commit/") and hub.history("org/style")[0].startswith(
        "Upload adapter"
    )
    files = hub.files("org/style")
    assert files["adapter_model.safetensors"] == (workplace / "adapter" / "adapter_model.safetensors").read_bytes()
    card = card_of(hub, "org/style")
    assert card.data.base_model == "org/base" and "org/style" in card.text
    assert card.data.get("license") is None
    succeeds("push", "adapter", "org/style", "--license", "cc-by-4.0", "--datasets", "org/delft")
    card = card_of(hub, "org/style")
    assert (card.data.license, card.data.datasets) == ("cc-by-4.0", ["org/delft"]) and "org/style" in card.text
    assert succeeds("push", "adapter", "org/style", "--card", "card.md") == ["card.md"]
    assert "# style" in Path("card.md").read_text()
    (workplace / "adapter" / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    succeeds("push", "adapter", "org/style")
    card = card_of(hub, "org/style")
    assert card.text == "# Mine\n" and (card.data.license, card.data.base_model) == ("mit", "org/base")
    assert "is an adapter, which takes no --include-code" in fails("push", "adapter", "org/style", "--include-code")


def test_a_class_to_image_pipeline(hub, succeeds, class_folder):
    succeeds("push", class_folder, "org/classes")
    card = card_of(hub, "org/classes")
    assert "| classes | 5 |" in card.text and "class-to-image" in card.data.tags
    assert {"transformer/model.safetensors", "vision_model/model.safetensors"} <= {*hub.files("org/classes")}
    loaded = UniWeTokClassToImagePipeline.from_pretrained("org/classes")
    assert loaded.get_label_ids("otter") == [3]
