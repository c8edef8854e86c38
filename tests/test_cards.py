import shutil

import pytest
from huggingface_hub import ModelCard
from tiny_models import build_tiny_pipeline
from transformers import PreTrainedModel

from uniwetok_hf import embedded_path
from uniwetok_hf.cards import model_card


def test_card_of_a_pipeline():
    pipe = build_tiny_pipeline(patch_size=2)
    card = model_card(pipe, "someone/tiny", datasets=["emoji"], training="Trained for a test.")
    assert card.data.library_name == "uniwetok-hf" and card.data.pipeline_tag == "text-to-image"
    assert card.data.datasets == ["emoji"]
    text = str(card)
    assert 'from_pretrained("someone/tiny"' in text and "Trained for a test." in text
    encoder = sum(p.numel() for p in pipe.mllm.vision_model.encoder.parameters())
    assert f"| parameters, encoder | {encoder:,} |" in text
    assert "{{" not in text and "not given" not in text


def test_card_of_the_image_model_alone(tiny_model):
    text = str(model_card(tiny_model))
    assert "UniWeTokImageProcessor" in text and "UniWeTokPipeline" not in text
    assert "Not described by whoever pushed this model." in text


def test_push_replaces_the_generic_card(tmp_path, monkeypatch):
    from diffusers import DiffusionPipeline

    pushed = []
    monkeypatch.setattr(
        DiffusionPipeline, "_upload_folder", lambda self, folder, *args, **kwargs: pushed.append(folder)
    )
    build_tiny_pipeline()._upload_folder(tmp_path, "someone/tiny")
    assert pushed == [tmp_path] and "someone/tiny" in ModelCard.load(tmp_path / "README.md").text


@pytest.mark.parametrize("kind", ["image model", "language model"])
def test_models_are_pushed_with_the_card_too(tiny_model, tmp_path, monkeypatch, kind):
    """All of `push_to_hub` but the network: what would be uploaded has our card and loads again."""
    model = tiny_model if kind == "image model" else build_tiny_pipeline().mllm
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: NoNetwork)
    pushed = []

    def upload(self, folder, repo_id, *args, **kwargs):
        pushed.append(repo_id)
        shutil.copytree(folder, tmp_path / "pushed")

    monkeypatch.setattr(PreTrainedModel, "_upload_modified_files", upload)
    model.push_to_hub("someone/tiny")
    assert pushed == ["someone/tiny"]
    card = ModelCard.load(tmp_path / "pushed" / "README.md")
    assert card.data.library_name == "uniwetok-hf" and "someone/tiny" in card.text
    assert type(model).from_pretrained(tmp_path / "pushed").num_parameters() == model.num_parameters()


class NoNetwork:
    """The one call of the Hub's interface that comes before the upload."""

    @staticmethod
    def create_repo(repo_id, **kwargs):
        return type("Url", (), {"repo_id": repo_id})


def test_unknown_embedded_name():
    with pytest.raises(ValueError, match="`name` must be one of .*got 'nothing'"):
        embedded_path("nothing")
