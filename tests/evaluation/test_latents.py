import numpy as np
import pytest
import torch
from PIL import Image
from tiny_judges import build_vit
from tiny_training import build_siglip

from uniwetok_hf.evaluation.choices import thumbnail
from uniwetok_hf.evaluation.latents import (
    PIXELS,
    EmbeddedPictures,
    class_embeddings,
    embed_rows,
    evaluate_latents,
    score_latents,
)
from uniwetok_hf.losses.distillation import PrePostDistillation
from uniwetok_hf.losses.teacher import Teacher


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return Teacher.from_pretrained(build_siglip(tmp_path_factory.mktemp("teachers") / "siglip"))


@pytest.fixture(scope="module")
def pools(teacher):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PrePostDistillation(16, teacher.embedding_size, hidden_size=16, num_attention_heads=2).eval()


def rows(count):
    colours = {"red": (220, 30, 30), "green": (20, 200, 40), "blue": (30, 40, 230)}
    rng = np.random.default_rng(0)
    for name in (list(colours)[i % 3] for i in range(count)):
        noise = rng.integers(-20, 21, (24, 24, 3))
        pixels = np.clip(np.array(colours[name]) + noise, 0, 255).astype(np.uint8)
        yield {"image": Image.fromarray(pixels), "colour": name}


def test_vectors_are_those_of_model_pools_and_teacher(tiny_model, teacher, pools):
    shown = list(rows(5))
    found = embed_rows(tiny_model, iter(shown), 16, "colour", pools=pools, teacher=teacher, batch_size=2)
    assert found.labels == ["red", "green", "blue", "red", "green"]
    assert {name: values.shape for name, values in found.means.items()} == {
        "latents": (5, 16),
        "codes": (5, 16),
        "8x8 pixels": (5, 192),
        "teacher": (5, 16),
    }
    pixels = torch.from_numpy(np.asarray(shown[4]["image"].resize((16, 16), Image.Resampling.BICUBIC)).copy())
    pixel_values = (pixels / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        encoded = tiny_model.encode(pixel_values)
        expected = pools.embed_latents(encoded.latents), pools.embed_codes(encoded.codes)
    np.testing.assert_allclose(found.means["codes"][4], encoded.codes.mean((2, 3))[0], atol=1e-5)
    np.testing.assert_allclose(found.means["latents"][4], encoded.latents.mean((2, 3))[0], atol=1e-5)
    np.testing.assert_allclose(found.pooled["latents"][4], expected[0][0], atol=1e-4)
    np.testing.assert_allclose(found.pooled["codes"][4], expected[1][0], atol=1e-4)
    np.testing.assert_allclose(found.pooled["teacher"][4], teacher.embed_pictures(pixel_values)[0], atol=1e-4)


def test_pixels_are_those_of_the_crop_that_the_model_sees(tiny_model):
    wide = Image.new("RGB", (128, 32), "red")
    wide.paste((0, 0, 255), (48, 0, 80, 32))  # the middle
    found = embed_rows(tiny_model, [{"image": wide, "label": "a"}], 32, "label").means[PIXELS]
    assert (found == thumbnail(Image.new("RGB", (32, 32), (0, 0, 255)), 8).flatten()).all()


def test_a_teacher_that_reads_no_texts(tmp_path):
    with pytest.raises(ValueError, match="`teacher` .* reads no texts"):
        class_embeddings(Teacher.from_pretrained(build_vit(tmp_path / "vit")), ["cat"], ["a {label}"])


def test_a_size_that_the_model_can_not_read(tiny_model):
    stride = tiny_model.config.stride
    with pytest.raises(ValueError, match=f"multiple of the model's {stride} pixels, got {stride + 1}"):
        evaluate_latents(tiny_model, rows(2), "colour", stride + 1)


def test_class_texts_are_averaged_over_templates(teacher):
    found = class_embeddings(teacher, ["cat", "dog"], ["a {label}", "the {label}!"])
    one, two = (teacher.embed_texts([text]).numpy()[0] for text in ("a dog", "the dog!"))
    expected = one / np.linalg.norm(one) + two / np.linalg.norm(two)
    np.testing.assert_allclose(found[1], expected, atol=1e-4)
    assert found.shape == (2, teacher.embedding_size)
    with pytest.raises(ValueError, match="must hold {label}, got 'a cat'"):
        class_embeddings(teacher, ["cat"], ["a {label}", "a cat"])


def test_zero_shot_accuracy_of_perfect_wrong_and_half_right_vectors():
    texts = np.eye(8)
    labels = [str(i % 8) for i in range(16)]
    right = np.eye(8)[[i % 8 for i in range(16)]]
    test = EmbeddedPictures(
        labels, {}, {"latents": right * 3, "codes": -right, "teacher": right + np.roll(right, 1, axis=1)}
    )
    found = {row.labels["what"]: row for row in score_latents(test, None, [str(i) for i in range(8)], texts)}
    names = ("latents", "codes", "teacher")
    assert [found[name].scores["top1"].value for name in names] == [1, 0, 0]  # a tie is wrong
    assert [found[name].scores["top5"].value for name in names] == [1, 0, 1]
    assert found["latents"].scores["top1"].chance == 1 / 8 and found["latents"].scores["top5"].chance == 5 / 8
    assert found["latents"].for_card and not found["teacher"].for_card


def test_few_classes_have_no_top_5():
    test = EmbeddedPictures(["a", "b"], {}, {"codes": np.eye(2)})
    (row,) = score_latents(test, None, ["a", "b"], np.eye(2))
    assert set(row.scores) == {"top1"}


def test_probe_learns_on_the_training_split(tiny_model):
    train, test = (embed_rows(tiny_model, rows(count), 16, "colour") for count in (60, 30))
    found = {row.labels["what"]: row.scores for row in score_latents(test, train)}
    assert set(found) == {"latents", "codes", "8x8 pixels"} and set(found["codes"]) == {"probe"}
    assert found["8x8 pixels"]["probe"].value == 1 and found["latents"]["probe"].value > 0.9
    assert found["latents"]["probe"].chance == pytest.approx(1 / 3)
    train.labels = ["blue"] * 40 + ["red"] * 20
    assert score_latents(test, train)[0].scores["probe"].chance == pytest.approx(1 / 3)
    test.labels = ["blue"] * 27 + ["red"] * 3
    assert score_latents(test, train)[0].scores["probe"].chance == pytest.approx(0.9)


def test_what_does_not_fit_is_refused(tiny_model, teacher):
    for_others = PrePostDistillation(32, 16, hidden_size=16, num_attention_heads=2)
    with pytest.raises(ValueError, match="`pools` are for 32 bits, the model has 16"):
        embed_rows(tiny_model, rows(1), 16, "colour", pools=for_others)
    with pytest.raises(ValueError, match="no picture"):
        embed_rows(tiny_model, [], 16, "colour")
    with pytest.raises(ValueError, match="trained with another teacher"):
        score_latents(EmbeddedPictures(["a"], {}, {"codes": np.ones((1, 3))}), None, ["a", "b"], np.eye(2))
