import json

import pytest
import torch
from tiny_judges import build_clip, build_vit
from transformers import AutoModel, CLIPVisionModel

from uniwetok_hf.provenance import (
    LossModel,
    check_unseen,
    find_seen,
    loss_model,
    read_training_record,
    short_name,
    training_record,
    weight_digests,
)


def save(folder, record):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judges")
    return [build_clip(folder / "first", seed=0), build_clip(folder / "second", seed=1)]


def test_digests_know_a_model_again(clips, tmp_path):
    first, second = (AutoModel.from_pretrained(folder) for folder in clips)
    own = set(weight_digests(first))
    assert len(own) == len(weight_digests(first)) > 10
    assert weight_digests(AutoModel.from_pretrained(clips[0], dtype=torch.bfloat16)) == weight_digests(first)
    assert weight_digests(AutoModel.from_pretrained(clips[0], dtype=torch.float16)) == weight_digests(first)
    vision = set(weight_digests(CLIPVisionModel.from_pretrained(clips[0])))
    assert vision < own  # other parameter names, half of the model
    assert not own & set(weight_digests(second))


def test_digests_leave_out_what_says_nothing():
    layers = torch.nn.ModuleList([torch.nn.Linear(32, 32), torch.nn.Linear(4, 4)])
    assert len(weight_digests(layers)) == 1  # neither biases nor small matrices
    torch.nn.init.ones_(layers[0].weight)
    assert weight_digests(layers) == ()


def test_a_teacher_is_refused_as_judge(clips, tmp_path):
    first, second = (AutoModel.from_pretrained(folder) for folder in clips)
    vision = CLIPVisionModel.from_pretrained(clips[0])
    folder = save(tmp_path / "model", {"training": {}} | training_record([loss_model("teacher", vision, clips[0])]))
    with pytest.raises(ValueError, match="`judge` renamed has the weights of first, the teacher"):
        check_unseen(first, "renamed", folder)
    assert check_unseen(second, "second", folder) == "no, they used first (teacher)"
    seen, words = find_seen(first, folder)
    assert seen.name == "first" and words == "yes, it is first (teacher)"


def test_a_teacher_that_was_partly_trained_on_is_refused(clips, tmp_path):
    folder = save(tmp_path / "model", training_record([loss_model("teacher", AutoModel.from_pretrained(clips[0]))]))
    changed = AutoModel.from_pretrained(clips[0])
    with torch.no_grad():
        changed.visual_projection.weight.neg_()
        changed.text_projection.weight.neg_()
    assert find_seen(changed, folder)[0] is not None


def test_records_are_inherited(clips, tmp_path):
    teacher = loss_model("teacher", AutoModel.from_pretrained(clips[0]), "siglip")
    first = save(tmp_path / "first", training_record([teacher]))
    perceptual = LossModel("perceptual", "vgg", ("00ff",))
    second = save(tmp_path / "second", training_record([perceptual, teacher], [first]))
    record = read_training_record(second)
    assert [model.name for model in record.loss_models] == ["vgg", "siglip"] and record.is_complete
    (tmp_path / "unknown").mkdir()
    third = save(tmp_path / "third", training_record([], [second, tmp_path / "unknown"]))
    assert not read_training_record(third).is_complete
    fourth = save(tmp_path / "fourth", training_record([], [third]))
    assert not read_training_record(fourth).is_complete
    model = AutoModel.from_pretrained(clips[1])
    assert check_unseen(model, "x", fourth).endswith("siglip (teacher); earlier trainings left no record")


def test_what_is_known_without_a_record_and_without_frozen_networks(clips, tmp_path):
    model = AutoModel.from_pretrained(clips[0])
    assert read_training_record(tmp_path) is None
    assert "not known" in check_unseen(model, "x", tmp_path)
    save(tmp_path / "mllm", training_record())  # of a pipeline, beside the weights
    assert check_unseen(model, "x", tmp_path) == "no, they used no frozen network"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": 2, "is_complete": true, "loss_models": []}', '{"format": 1, "loss_models": [3]}']
)
def test_damaged_records_are_told(tmp_path, text):
    (tmp_path / "training.json").write_text(text)
    with pytest.raises(ValueError, match="training.json is no training record"):
        read_training_record(tmp_path)


def test_names_do_not_tell_local_paths(tmp_path):
    folder = build_vit(tmp_path / "secret" / "vit")
    assert loss_model("teacher", AutoModel.from_pretrained(folder)).name == "vit"
    assert loss_model("teacher", torch.nn.Linear(2, 2)).name == "Linear"
    run = tmp_path / "secret" / "run" / "model"
    run.mkdir(parents=True)
    assert short_name(run) == "run/model" and short_name(tmp_path / "secret") == "secret"
    assert loss_model("teacher", torch.nn.Linear(2, 2), "org/name").name == "org/name"
