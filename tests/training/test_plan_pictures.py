"""The plans of both trainings on pictures: against what autograd keeps of real ones, and the numbers by hand."""

import pytest
import torch
from tiny_encoded import class_training
from tiny_training import VISION, all_losses, write
from torch import nn

from uniwetok_hf.cli.main import main
from uniwetok_hf.training.config import find_config, read_config
from uniwetok_hf.training.plan import GIB, kept_bytes
from uniwetok_hf.training.plan_pictures import (
    AsAutocast,
    check_share,
    count,
    count_classes,
    count_losses,
    loss_networks,
    plan_classes,
    plan_uniwetok,
    planned_classes,
    planned_model,
)
from uniwetok_hf.training.train_class_to_image import ClassToImageTrainer, ClassToImageTrainingConfig
from uniwetok_hf.training.train_uniwetok import UniWeTokTrainer, UniWeTokTrainingConfig


@pytest.fixture
def tokenizer_fields(fixtures, tmp_path):
    fields = {**VISION, **all_losses(tmp_path), "data": [{"path": str(fixtures / "emoji")}]}
    return fields | {"output_dir": str(tmp_path / "run"), "batch_size": 4, "buckets": [{"height": 64, "width": 64}]}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_kept_of_a_real_step_of_the_tokenizer(tokenizer_fields, tmp_path, checkpointing):
    """With every loss, in float32: 0.98 times as much. With checkpointing, a layer that is computed again is counted,
    too."""
    path = write(tmp_path, tokenizer_fields, gradient_checkpointing=checkpointing)
    config = read_config(UniWeTokTrainingConfig, path)
    trainer = UniWeTokTrainer(config)
    pixel_values = next(iter(trainer.batches)).pixel_values
    parts = [trainer.model, trainer.perceptual, trainer.distillation, trainer.prior, trainer.discriminator]
    real = kept_bytes(lambda: trainer.compute_losses(pixel_values, [0, 1, 2, 3], step=5), nn.ModuleList(parts))
    model = planned_model(config)
    counted = count_losses(config, model, loss_networks(config, model), (4, 64, 64), is_mixed=False)
    assert set(counted) == {"activations", "perceptual loss", "adversarial loss", "entropy", "distillation", "prior"}
    ratio = sum(counted.values()) / real
    assert 0.9 < ratio < 1.1 if not checkpointing else 1 < ratio < 2


@pytest.mark.parametrize("patch_size", [1, 2])
def test_what_is_kept_of_a_real_step_on_classes(tmp_path, patch_size):
    fields = class_training(tmp_path) | {"output_dir": str(tmp_path / "run"), "resolution": 32}
    fields["model"] = {**fields["model"], "patch_size": patch_size}
    config = read_config(ClassToImageTrainingConfig, write(tmp_path, fields))
    trainer = ClassToImageTrainer(config)
    [batch], _ = trainer.batches.step(0, 1.0)
    model = trainer.pipeline.transformer.train()
    real = kept_bytes(lambda: trainer.compute_losses(batch), model)
    planned = planned_classes(config)[1]
    assert (planned.num_bits, planned.grid_size) == (model.config.num_bits, model.config.grid_size)
    ratio = count_classes(model.to("meta"), tuple(batch.codes.shape), is_mixed=False, is_checkpointed=False) / real
    assert 0.85 < ratio < 1.1


def test_weights_and_optimizer_by_hand(tokenizer_fields, tmp_path):
    """Eight bytes of Adam, four of each of the others; the teacher's half without its texts."""
    config = read_config(UniWeTokTrainingConfig, write(tmp_path, tokenizer_fields, mixed_precision="bf16"))
    plan = plan_uniwetok(config, 2)
    trainer = UniWeTokTrainer(read_config(UniWeTokTrainingConfig, write(tmp_path, tokenizer_fields)))
    learnt = count(*trainer.parameters, *trainer.discriminator.parameters())
    memory = {name: size * GIB for name, size in plan.memory["copies"].items()}
    assert plan.trained == learnt and memory["gradients"] == 4 * learnt and memory["Adam's moments"] == 8 * learnt
    assert memory["averages"] == 4 * count(*trainer.averaged) and memory["buckets of gradients"] == 4 * learnt
    assert memory["teacher"] == 2 * count(*trainer.teacher.model.vision_model.parameters())
    assert memory["perceptual network"] == 4 * count(*trainer.perceptual.parameters())
    assert "buckets of gradients" not in plan_uniwetok(config, 1).memory["copies"]


def test_the_largest_size_counts(tokenizer_fields, tmp_path):
    """A step has at most as many pixels as that of the first size, but one picture a process at least."""
    sizes = [{"height": 32, "width": 32}, {"height": 128, "width": 128}]
    plans = [
        plan_uniwetok(read_config(UniWeTokTrainingConfig, write(tmp_path, tokenizer_fields | {"buckets": some})), 1)
        for some in (sizes[:1], sizes)
    ]
    one, both = (plan.memory["copies"]["activations"] for plan in plans)
    assert 3 < both / one < 5 and plans[0].pictures == plans[1].pictures == 4


def test_dtypes_are_those_of_autocast():
    states = torch.empty(2, 8, 4, 4, device="meta", requires_grad=True)
    network = nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 1)).to("meta")
    with AsAutocast():
        hidden = network[0](states)
        normalised = network[2](network[1](hidden))
        assert hidden.dtype == network[3](normalised).dtype == torch.bfloat16 and normalised.dtype == torch.float32
    assert network(states).dtype == torch.float32


@pytest.mark.slow
def test_configs_of_the_paper(capsys):
    """In seconds; each is a config of its own kind. Sizes of models are the paper's (docs/method.md 4)."""
    assert main(["plan", "imagenet_uniwetok", "--pictures-per-second", "600"]) == 0
    text = capsys.readouterr().out
    assert "128 pictures a step, 32,032,000 in 250,250 steps" in text and "fits into 74.5 GiB" in text
    assert "At 600 pictures a second: 14.8 hours, 51,840,000 pictures a day, 5,310.8 GiB of files of 110 kB" in text
    assert "| perceptual loss |" in text and "| prior |" in text and "FSDP" not in text
    assert main(["plan", "imagenet_b", "--gpus", "64", "--pictures-per-second", "9000"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("242,594,432 parameters") and "FSDP: " in text and "GiB of codes." in text
    assert (
        "- `vision_model` runs/imagenet_uniwetok is not there: it counts as an image tokenizer of the paper." in text
    )
    with pytest.warns(UserWarning, match="`vision_model` .* is not there"):
        plan = plan_classes(read_config(ClassToImageTrainingConfig, find_config("imagenet_bitdance_b_4x")), 8)
    assert plan.total("shards") < plan.total("copies")


def test_errors_are_one_line(tokenizer_fields, tmp_path, capsys):
    path = str(write(tmp_path, tokenizer_fields))
    assert main(["plan", path, "--tokens-per-second", "5"]) == 1
    assert "--tokens-per-second is not for a config of `uniwetok train tokenizer`" in capsys.readouterr().err
    assert main(["plan", path, "--gpus", "3"]) == 1
    assert "`batch_size`=4 must be a multiple of GPUs x" in capsys.readouterr().err
    path = str(write(tmp_path, tokenizer_fields | {"l1_weight": "much"}))
    assert main(["plan", path]) == 1 and "l1_weight" in capsys.readouterr().err
    path = str(write(tmp_path, tokenizer_fields | {"model": {"num_bit": 8}}))
    assert main(["plan", path, "--gpus", "1"]) == 1 and "`model.num_bit` is no field" in capsys.readouterr().err
    with pytest.raises(ValueError, match="`num_gpus` must be 1 or more, got 0"):
        check_share(read_config(UniWeTokTrainingConfig, find_config("small_uniwetok")), 0)
