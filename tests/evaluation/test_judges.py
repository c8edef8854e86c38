import json
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_judges import build_clip, build_vit
from tiny_training import build_siglip
from transformers import AutoImageProcessor, AutoModel
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

from uniwetok_hf.evaluation.judges import Judge, PerceptualNetwork, keeps_middle, short_digest
from uniwetok_hf.evaluation.metrics import perceptual_distance
from uniwetok_hf.losses.perceptual import LPIPS, PerceptualLoss
from uniwetok_hf.provenance import loss_model, training_record


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return build_clip(tmp_path_factory.mktemp("judges") / "clip")


def pictures(*sizes):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def test_pictures_of_a_dual_encoder(clip):
    judge = Judge.from_pretrained(clip)
    shown = pictures((40, 60), (32, 32), (100, 50))
    found = judge.embed_images(shown, batch_size=2)
    assert found.shape == (3, 8) and found.dtype == np.float32
    model, processor = AutoModel.from_pretrained(clip), AutoImageProcessor.from_pretrained(clip)
    with torch.no_grad():
        expected = model.get_image_features(**processor(shown, return_tensors="pt")).pooler_output
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert judge.describe().startswith("clip (CLIPModel, weights ")


def test_texts_do_not_depend_on_their_neighbours(clip):
    judge = Judge.from_pretrained(clip)
    texts = ["cat", "a much longer text about a dog", "x" * 500]
    together = judge.embed_texts(texts)
    alone = np.concatenate([judge.embed_texts([text]) for text in texts])
    assert together.shape == (3, 8)
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_siglip_is_padded_to_the_full_length(tmp_path):
    folder = build_siglip(tmp_path / "siglip")
    judge = Judge.from_pretrained(folder)
    inputs = judge.tokenizer(["cat"], padding="max_length", max_length=32, return_tensors="pt")
    with torch.no_grad():
        expected = judge.model.get_text_features(input_ids=inputs["input_ids"]).pooler_output
    assert inputs["input_ids"].shape == (1, 32)
    found = judge.embed_texts(["cat"])
    assert found.shape == expected.shape
    with torch.no_grad():
        masked = judge.model.get_text_features(**{k: v for k, v in inputs.items() if k != "token_type_ids"})
    np.testing.assert_allclose(found, masked.pooler_output, atol=1e-5)


def test_vision_models_with_and_without_a_pooler(tmp_path):
    shown = pictures((32, 32), (50, 40))
    judge = Judge.from_pretrained(build_vit(tmp_path / "vit"))
    model, processor = judge.model, judge.image_processor
    with torch.no_grad():
        output = model(**processor(shown, return_tensors="pt"))
    np.testing.assert_allclose(judge.embed_images(shown), output.pooler_output, atol=1e-5)
    assert not judge.reads_texts
    with pytest.raises(ValueError, match="reads no texts"):
        judge.embed_texts(["cat"])
    # The pooler of a classifier's checkpoint would be random.
    folder = build_vit(tmp_path / "classifier", has_pooler=False)
    first, second = Judge.from_pretrained(folder), Judge.from_pretrained(folder)
    np.testing.assert_array_equal(first.embed_images(shown), second.embed_images(shown))
    with torch.no_grad():
        states = first.model(**processor(shown, return_tensors="pt")).last_hidden_state
    np.testing.assert_allclose(first.embed_images(shown), states.mean(1), atol=1e-5)


def test_convolutional_outputs_are_pooled():
    class Output:
        def __init__(self, states):
            self.last_hidden_state = states

    judge = Judge(torch.nn.Linear(1, 1), None)
    maps = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert judge._pooled(Output(maps)).tolist() == [[5.5, 17.5]]
    assert judge._pooled(torch.ones(2, 3, 1, 1)).shape == (2, 3)


def test_folders_that_are_no_judge(clip, tmp_path):
    with pytest.raises(ValueError, match="`judge` .*missing can't be loaded"):
        Judge.from_pretrained(tmp_path / "missing")
    broken = tmp_path / "broken"
    build_clip(broken)
    weights = load_file(broken / "model.safetensors")
    weights.pop("visual_projection.weight")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights, the first is visual_projection.weight"):
        Judge.from_pretrained(broken)
    (broken / "preprocessor_config.json").unlink()
    (broken / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(ValueError, match="can't be loaded"):
        Judge.from_pretrained(broken)


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    return image, np.clip(image.astype(int) + rng.integers(-60, 61, image.shape), 0, 255).astype(np.uint8)


def test_perceptual_distance_of_a_vision_model(tmp_path, pair):
    perceptual = PerceptualNetwork.from_pretrained(build_vit(tmp_path / "vit"))
    network = perceptual.network
    assert isinstance(network, PerceptualLoss)
    digest = short_digest(perceptual.network)
    assert perceptual.describe() == f"features of vit (ViTModel, weights {digest}), all channels alike"
    assert perceptual.seen == "not checked" and len(digest) == 8
    images, references = pair
    values = perceptual_distance(images, references, network)
    with torch.no_grad():
        tensors = [torch.from_numpy(p / np.float32(127.5) - 1).permute(0, 3, 1, 2).float() for p in pair]
        expected = network.distances(*tensors)
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    assert values.min() > 0 and perceptual_distance(images[0], images[0], network) == 0


def test_lpips_from_a_file(tmp_path, pair):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(LPIPS([4] * 13).state_dict(), tmp_path / "lpips.safetensors")
    perceptual = PerceptualNetwork.from_pretrained(tmp_path / "lpips.safetensors")
    network = perceptual.network
    assert isinstance(network, LPIPS)
    assert perceptual.describe() == f"LPIPS of lpips.safetensors (weights {short_digest(perceptual.network)})"
    assert perceptual_distance(pair[0][0], pair[1][0], network) > 0
    grey = pair[0][0, ..., 0]
    assert perceptual_distance(grey, grey, network) == 0


def test_no_perceptual_network(tmp_path):
    for source in (tmp_path / "missing", tmp_path / "missing.safetensors"):
        with pytest.raises(ValueError, match="missing"):
            PerceptualNetwork.from_pretrained(source)


def test_a_judge_that_a_training_loss_used_is_refused(tmp_path, clip):
    judge = Judge.from_pretrained(clip)
    assert judge.seen == "not checked"
    (tmp_path / "training.json").write_text(json.dumps(training_record([])))
    assert Judge.from_pretrained(clip, unseen_by=tmp_path).seen == "no, they used no frozen network"
    (tmp_path / "training.json").write_text(json.dumps(training_record([loss_model("teacher", judge.model, clip)])))
    with pytest.raises(ValueError, match="`judge` clip has the weights of clip, the teacher"):
        Judge.from_pretrained(clip, unseen_by=tmp_path)


def test_a_picture_of_one_line_takes_little_memory(clip):
    """CLIP's processor would scale it to 32 x 640,000 pixels, and keep the middle."""
    judge = Judge.from_pretrained(clip)
    line, sides = pictures((20_000, 1))[0], pictures((3000, 2), (2, 3001), (64, 2))
    tracemalloc.start()
    judge.embed_images([line])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
    found = judge.embed_images(sides)
    judge.sees_middle = False
    np.testing.assert_allclose(found, judge.embed_images(sides), atol=1e-4)
    np.testing.assert_array_equal(found[2], judge.embed_images(sides)[2])


def test_which_processors_keep_the_middle(clip, tmp_path):
    convnext = ConvNextImageProcessorPil
    assert keeps_middle(AutoImageProcessor.from_pretrained(clip)) and keeps_middle(
        convnext(size={"shortest_edge": 224})
    )
    assert not keeps_middle(convnext(size={"shortest_edge": 384}))  # which squeezes the whole
    assert not keeps_middle(AutoImageProcessor.from_pretrained(build_vit(tmp_path / "vit")))
