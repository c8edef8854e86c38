import json

import pytest
from huggingface_hub import ModelCard
from tiny_models import build_tiny_class_pipeline, build_tiny_pipeline

from uniwetok_hf import embedded_path
from uniwetok_hf.cards import card_to_push, describe_training, model_card
from uniwetok_hf.evaluation.intervals import Score
from uniwetok_hf.evaluation.reports import Report, ScoreRow


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


def test_card_of_a_class_to_image_pipeline_and_its_model():
    pipe = build_tiny_class_pipeline(2)
    card = model_card(pipe, "someone/classes")
    assert "class-to-image" in card.data.tags and card.data.pipeline_tag == "unconditional-image-generation"
    head = sum(parameter.numel() for parameter in pipe.transformer.image_head.parameters())
    rest = sum(parameter.numel() for parameter in pipe.transformer.parameters()) - head
    for text in (str(card), str(model_card(pipe.transformer))):
        assert f"| parameters, transformer | {rest:,} |" in text and "| classes | 5 |" in text
        assert "{{" not in text and "language model" not in text
    assert "not given" not in str(card)
    assert 'UniWeTokClassToImagePipeline.from_pretrained("someone/classes"' in str(card)


def test_unknown_embedded_name():
    with pytest.raises(ValueError, match="`name` must be one of .*got 'nothing'"):
        embedded_path("nothing")


def test_results_without_scores_of_the_model_are_tables_only(tiny_model, tmp_path):
    rows = [ScoreRow({"what": "all white"}, {"psnr": Score(9.6, 10)})]
    Report("reconstruction", "one", "emoji", "test", {}, rows).save(tmp_path / "results")
    card = model_card(tiny_model, "org/one", results=tmp_path / "results")
    assert "| all white | 9.60 | 10 |" in card.text and not card.data.eval_results
    (tmp_path / "README.md").write_text("# Mine\n")
    pushed = card_to_push(card, tmp_path / "README.md", ["eval_results"])
    assert pushed.text == "# Mine\n" and not pushed.data.eval_results and pushed.data.license == "apache-2.0"


def test_an_edited_text_is_kept(tiny_model, tmp_path):
    old = model_card(tiny_model, "org/old")
    for text, stays in ((str(old), False), (str(old).replace("\n", "\r\n"), False), (str(old) + "Hello.\n", True)):
        (tmp_path / "README.md").write_text(text, newline="")
        pushed = card_to_push(model_card(tiny_model, "org/new"), tmp_path / "README.md")
        assert ("org/old" in pushed.text, "org/new" in pushed.text) == (stays, not stays)
    changed = str(old).replace("Fine detail", "Very fine detail")
    (tmp_path / "README.md").write_text(changed)
    assert card_to_push(model_card(tiny_model, "org/new"), tmp_path / "README.md").text == ModelCard(changed).text


def test_training_that_was_not_recorded(tmp_path):
    assert describe_training(tmp_path) is None
    old = {"format": 1, "is_complete": True, "loss_models": []}  # of the time before settings were kept
    (tmp_path / "training.json").write_text(json.dumps(old))
    assert describe_training(tmp_path) is None
