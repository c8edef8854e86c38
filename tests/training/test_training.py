"""Both trainings, for real but tiny: they run, stop anywhere, resume exactly, and save what the package can load."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from uniwetok_hf import UniWeTokModel, UniWeTokPipeline
from uniwetok_hf.training import common, train_mllm, train_uniwetok
from uniwetok_hf.training.common import endless_batches, read_config
from uniwetok_hf.training.pictures import PictureDataset
from uniwetok_hf.training.tasks import EmojiTasks


VISION = {
    "resolution": 32,
    "steps": 4,
    "batch_size": 4,
    "warmup_steps": 1,
    "learning_rate": 1e-3,
    "crop_probability": 0.5,
    "log_every": 1,
    "save_every": 2,
    "model": {
        "base_channels": 8,
        "channel_multipliers": [1, 1, 1, 2],
        "num_res_blocks": 1,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_norm_groups": 4,
        "num_bits": 16,
    },
}
LANGUAGE = {
    "resolution": 32,
    "steps": 4,
    "batch_size": 3,
    "warmup_steps": 1,
    "log_every": 1,
    "save_every": 2,
    "vocab_size": 300,
    "num_size_tokens": 8,
    "num_inference_steps": 2,
    "save_dtype": "bfloat16",
    "prompts": ["a noto emoji of red heart"],
    "text_model": {
        "model_type": "qwen3",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 32,
        "tie_word_embeddings": True,
    },
    "head": {"hidden_size": 32, "num_hidden_layers": 2, "num_modulation_layers": 1, "head_dim": 16},
    "mllm": {"patch_size": 2},
}


@pytest.fixture(scope="module")
def data(fixtures):
    return str(fixtures / "emoji")


@pytest.fixture(scope="module")
def trained_vision(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    return train_uniwetok.main(write(folder, VISION, data=data, output_dir=str(folder / "run")))


def write(folder, fields, **more):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**fields, **more}))
    return path


def interrupted(module, monkeypatch):
    """Makes the run of `module` die right after its first checkpoint."""

    def save_and_die(*args):
        common.save_checkpoint(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_checkpoint", save_and_die)


def assert_same_weights(one, other):
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def losses(folder, *names):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [[line.get(name) for name in names] for line in lines]


def test_image_training_saves_a_model_and_its_figures(trained_vision):
    model = UniWeTokModel.from_pretrained(trained_vision)
    assert model.config.stride == 8 and model.config.num_bits == 16
    run = trained_vision.parent
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"psnr", "batch_entropy", "stuck_bits", "pictures_per_second"} <= lines[0].keys()
    assert "validation_psnr" in lines[1] and (run / "validation-000004.png").exists()
    assert not (run / "checkpoint.tmp").exists() and not (run / "model.tmp").exists()


def test_image_training_resumes_exactly(data, trained_vision, tmp_path, monkeypatch):
    path = write(tmp_path, VISION, data=data, output_dir=str(tmp_path / "run"))
    with monkeypatch.context() as patch:
        interrupted(train_uniwetok, patch)
        with pytest.raises(KeyboardInterrupt):
            train_uniwetok.main(path)
    assert not (tmp_path / "run" / "model").exists()
    resumed = train_uniwetok.main(path)
    assert_same_weights(resumed / "model.safetensors", trained_vision / "model.safetensors")
    assert losses(tmp_path / "run", "l1")[-2:] == losses(trained_vision.parent, "l1")[-2:]


def test_image_training_learns_and_a_later_stage_starts_from_it(data, trained_vision, tmp_path):
    path = write(
        tmp_path,
        {**VISION, "model": {}, "resolution": 16, "steps": 40, "save_every": 40, "learning_rate": 3e-3},
        data=data,
        output_dir=str(tmp_path / "run"),
        init_from=str(trained_vision),
    )
    train_uniwetok.main(path)
    errors = [line[0] for line in losses(tmp_path / "run", "l1")]
    assert sum(errors[-5:]) < 0.8 * sum(errors[:5])


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    path = write(tmp_path, VISION, data=data, output_dir=str(tmp_path / "run"), l1_weight=float("inf"))
    with pytest.raises(FloatingPointError, match="step 0"):
        train_uniwetok.main(path)


@pytest.fixture(scope="module")
def trained_pipeline(data, trained_vision, tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    path = write(folder, LANGUAGE, data=data, vision_model=str(trained_vision), output_dir=str(folder / "run"))
    return train_mllm.main(path)


def test_language_training_saves_a_pipeline(trained_pipeline, trained_vision):
    pipe = UniWeTokPipeline.from_pretrained(trained_pipeline, dtype=torch.float32)
    assert pipe.config.default_size == 32 and pipe.config.default_num_inference_steps == 2
    stored = load_file(trained_pipeline / "mllm" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    # The image tokenizer is frozen: it comes out as it went in.
    vision = UniWeTokModel.from_pretrained(trained_vision)
    for name, tensor in vision.state_dict().items():
        assert torch.equal(tensor.bfloat16(), stored[f"model.vision_model.{name}"]), name
    generator = torch.Generator().manual_seed(0)
    assert pipe("a noto emoji of red heart", generator=generator).images[0].size == (32, 32)
    assert (trained_pipeline.parent / "drawings-000004.png").exists()


def test_language_training_resumes_exactly(data, trained_vision, trained_pipeline, tmp_path, monkeypatch):
    path = write(tmp_path, LANGUAGE, data=data, vision_model=str(trained_vision), output_dir=str(tmp_path / "run"))
    with monkeypatch.context() as patch:
        interrupted(train_mllm, patch)
        with pytest.raises(KeyboardInterrupt):
            train_mllm.main(path)
    resumed = train_mllm.main(path)
    assert_same_weights(resumed / "mllm" / "model.safetensors", trained_pipeline / "mllm" / "model.safetensors")


def test_batches_depend_on_seed_and_position_alone(data):
    def first_pixels(skip, count, seed=3):
        batches = endless_batches(PictureDataset(data, "train", 16, 0.5), 4, seed, skip)
        return [next(batches)["pixel_values"] for _ in range(count)]

    straight = first_pixels(0, 12)
    for index, batch in enumerate(first_pixels(5, 7)):
        assert torch.equal(batch, straight[5 + index])
    assert not torch.equal(first_pixels(0, 1, seed=4)[0], straight[0])


def test_tasks(data):
    tasks = EmojiTasks(data, {"draw": 1, "edit": 1, "describe": 1}, text_dropout=0.0)
    ids = {row["id"] for row in tasks.rows}
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(30):
        batch = tasks.batch(4, generator)
        shapes = {tuple((m["role"], tuple(part["type"] for part in m["content"])) for m in s.messages) for s in batch}
        assert len(shapes) == 1  # one task a batch
        seen |= shapes
        for sample in batch:
            pictures = [part for m in sample.messages for part in m["content"] if part["type"] == "image"]
            assert len(pictures) == len(sample.pictures) and set(sample.pictures) <= ids
    assert seen == {
        (("user", ("text",)), ("assistant", ("image",))),
        (("user", ("image", "text")), ("assistant", ("image",))),
        (("user", ("image", "text")), ("assistant", ("text",))),
    }


def test_text_dropout_leaves_only_the_picture(data):
    tasks = EmojiTasks(data, {"draw": 1, "edit": 1}, text_dropout=1.0)
    for sample in tasks.batch(8, torch.Generator().manual_seed(0)):
        assert [m["role"] for m in sample.messages] == ["assistant"] and len(sample.pictures) == 1


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"step": 3}, "unknown field step"),
        ({"resolution": "big"}, "`resolution` must be int"),
        ({"learning_rate": "fast"}, "`learning_rate` must be a number"),
    ],
)
def test_config_errors_name_the_field(tmp_path, fields, message):
    path = write(tmp_path, {**VISION, "data": "x", "output_dir": "y", **fields})
    with pytest.raises(ValueError, match=message):
        read_config(train_uniwetok.UniWeTokTrainingConfig, path)


def test_config_lacking_a_field(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("resolution: 32\nlearning_rate: 1e-3\n")
    with pytest.raises(ValueError, match="missing field batch_size, data, output_dir, steps"):
        read_config(train_uniwetok.UniWeTokTrainingConfig, path)


def test_a_finished_training_is_not_replaced(data, trained_vision, tmp_path):
    path = write(tmp_path, VISION, data=data, output_dir=str(trained_vision.parent))
    before = (trained_vision / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="`output_dir` .* holds the model of a finished training"):
        train_uniwetok.main(path)
    assert (trained_vision / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("module, fields", [(train_uniwetok, VISION), (train_mllm, LANGUAGE)])
def test_missing_data_says_how_to_build_it(tmp_path, module, fields):
    more = {"vision_model": "x"} if module is train_mllm else {}
    path = write(tmp_path, fields, data=str(tmp_path / "no"), output_dir=str(tmp_path / "run"), **more)
    with pytest.raises(ValueError, match="`uniwetok data emoji"):
        module.main(path)
    assert not (tmp_path / "run").exists()


def test_a_run_shorter_than_the_log_interval_leaves_figures_and_a_checkpoint(data, tmp_path):
    fields = {**VISION, "steps": 2, "log_every": 50, "save_every": 500}
    train_uniwetok.main(write(tmp_path, fields, data=data, output_dir=str(tmp_path / "run")))
    assert [line[0] for line in losses(tmp_path / "run", "step")] == [2]
    assert (tmp_path / "run" / "checkpoint" / "progress.json").exists()
