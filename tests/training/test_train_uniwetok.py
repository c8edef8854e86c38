"""The tokenizer's training, for real but tiny: it runs with every loss, stops anywhere, resumes exactly, hands over to
a later stage, and saves what the package can load."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny_training import VISION, all_losses, assert_same_weights, log_lines, train_file, write
from transformers import AutoImageProcessor, AutoModel

from uniwetok_hf import UniWeTokModel
from uniwetok_hf.losses.distillation import PrePostDistillation
from uniwetok_hf.provenance import read_training_record, weight_digests
from uniwetok_hf.training import train_uniwetok
from uniwetok_hf.training.checkpoints import list_checkpoints
from uniwetok_hf.training.config import find_config, read_config, shipped_configs
from uniwetok_hf.training.train_uniwetok import (
    UniWeTokTrainer,
    UniWeTokTrainingConfig,
    read_validation,
    teacher_dtype,
)


@pytest.fixture(scope="module")
def fields(fixtures, tmp_path_factory):
    """A training with every loss, on the emoji of the fixtures."""
    source = {"path": str(fixtures / "emoji")}
    losses = all_losses(tmp_path_factory.mktemp("judges"))
    return {**VISION, "data": [source], "validation_data": {**source, "split": "validation"}, **losses}


@pytest.fixture(scope="module")
def trained(fields, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    return train_file(train_uniwetok, write(folder, fields, output_dir=str(folder / "run"))).parent


def test_a_run_leaves_a_model_its_losses_and_metrics(trained, fields):
    model = UniWeTokModel.from_pretrained(trained / "model")
    assert model.config.stride == 8 and model.config.num_bits == 16
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    parts = {"l1", "l2", "perceptual", "entropy", "commitment", "distillation", "prior"}
    metrics = {"psnr", "sample_entropy", "batch_entropy", "bit_entropy", "stuck_bits", "dead_bits", "min_bit_usage"}
    metrics |= {"pictures_per_second", "grad_norm", "learning_rate", "skipped_pictures", "enlarged_pictures"}
    assert parts | metrics <= lines[0].keys()
    assert "adversarial" not in lines[0] and {"adversarial", "discriminator", "lecam"} <= lines[1].keys()
    assert {"validation_psnr_32x32", "validation_ssim_16x32"} <= lines[2].keys()
    assert (trained / "samples" / "validation-16x32-000006.png").exists()
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == ["step-000004", "step-000006"]
    names = {"distillation", "prior.safetensors", "discriminator.safetensors", "lecam.safetensors"}
    assert {path.name for path in (trained / "losses").iterdir()} == names
    assert PrePostDistillation.from_pretrained(trained / "losses" / "distillation").post_pool is not None
    assert AutoImageProcessor.from_pretrained(trained / "model").stride == model.config.stride
    assert json.loads((trained / "model" / "training.json").read_text())["training"]["batch_size"] == 4
    record = read_training_record(trained / "model")
    assert [seen.role for seen in record.loss_models] == ["teacher", "perceptual"] and record.is_complete
    teacher = AutoModel.from_pretrained(fields["distillation"]["teacher"])  # its text half, which is dropped, too
    assert record.loss_models[0].weights == weight_digests(teacher)
    assert not [path for path in trained.rglob("*") if ".tmp" in path.name]


def test_the_first_interrupt_waits_for_the_step_and_keeps_it(fields, trained, tmp_path, monkeypatch):
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"), checkpointing_steps=100)
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        step = UniWeTokTrainer.train_step

        def interrupted(self, batch, current):
            if current == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return step(self, batch, current)

        patch.setattr(UniWeTokTrainer, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 3; the same command continues from there"):
            train_file(train_uniwetok, path)
    assert signal.getsignal(signal.SIGINT) is before
    assert [found.name for found in list_checkpoints(tmp_path / "run")] == ["step-000003"]
    assert_same_runs(train_file(train_uniwetok, path).parent, trained)


def test_a_run_stopped_in_the_middle_resumes_exactly(fields, trained, tmp_path, monkeypatch):
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"))
    with monkeypatch.context() as patch:
        steps = iter(range(5))
        step = UniWeTokTrainer.train_step

        def until_the_fifth(*args):
            if next(steps) == 4:
                raise KeyboardInterrupt
            return step(*args)

        patch.setattr(UniWeTokTrainer, "train_step", until_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            train_file(train_uniwetok, path)
    assert not (tmp_path / "run" / "model").exists()
    resumed = train_file(train_uniwetok, path).parent
    assert_same_runs(resumed, trained)


def assert_same_runs(one, other):
    for name in ("model/model.safetensors", "losses/prior.safetensors", "losses/discriminator.safetensors"):
        assert_same_weights(one / name, other / name)
    assert log_lines(one) == log_lines(other)


def test_a_killed_run_resumes_exactly(fields, trained, tmp_path):
    """SIGKILL, which no program can catch, after a random number of steps."""
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"))
    log, steps = tmp_path / "run" / "log.jsonl", random.randint(1, 5)
    script = "import sys, torch; torch.set_num_threads(1); from uniwetok_hf.cli.main import main; "
    command = [sys.executable, "-c", script + "main(['train', 'tokenizer', '--config', sys.argv[1]])", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= steps):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, f"ended before it could be killed after {steps} steps"
    assert_same_runs(train_file(train_uniwetok, path).parent, trained)


def test_a_later_stage_goes_on_from_the_one_before(fields, trained, tmp_path):
    later = {**fields, "model": {}, "init_from": str(trained), "max_train_steps": 1, "learning_rate": 0.0}
    run = train_file(train_uniwetok, write(tmp_path, later, output_dir=str(tmp_path / "run"))).parent
    # Nothing is learnt at a rate of 0: what comes out is what the stage before left.
    for name in ("model/model.safetensors", "losses/prior.safetensors", "losses/discriminator.safetensors"):
        assert_same_weights(run / name, trained / name)
    assert_same_weights(
        run / "losses" / "distillation" / "model.safetensors",
        trained / "losses" / "distillation" / "model.safetensors",
    )


@pytest.mark.parametrize("is_cut", [True, False])
def test_a_damaged_network_of_the_stage_before_is_named(fields, trained, tmp_path, is_cut):
    """Cut off, or the pointer of Git LFS."""
    before = shutil.copytree(trained, tmp_path / "before")
    file = before / "losses" / "prior.safetensors"
    file.write_bytes(file.read_bytes()[:-10] if is_cut else b"version https://git-lfs.github.com/spec/v1\n")
    later = {name: value for name, value in fields.items() if name != "model"} | {"init_from": str(before)}
    with pytest.raises(ValueError, match=rf"^`init_from`: {file} is damaged \(.*\). Put a whole copy of it there"):
        train_file(train_uniwetok, write(tmp_path, later, output_dir=str(tmp_path / "run")))


def test_a_process_keeps_its_share_of_the_validation_alone(fields, tmp_path):
    config = read_config(UniWeTokTrainingConfig, write(tmp_path, fields, output_dir=str(tmp_path / "run")))
    (whole, *_), *shares = ([*read_validation(config, *which).values()] for which in ((0, 1), (0, 3), (1, 3)))
    for index, (share, *_) in enumerate(shares):
        assert torch.equal(share, whole[index::3])
        assert share.untyped_storage().nbytes() == share.numel()  # uint8


def test_an_unfinished_stage_is_no_start(fields, tmp_path):
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "log.jsonl").touch()
    later = {**fields, "model": {}, "init_from": str(tmp_path / "before")}
    path = write(tmp_path, later, output_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="`init_from` .* is a stage that is not finished"):
        train_file(train_uniwetok, path)


def test_training_learns(fields, tmp_path):
    plain = {**fields, "perceptual": None, "adversarial": None, "distillation": None, "prior": None}
    more = {"buckets": [{"height": 16, "width": 16}], "max_train_steps": 60, "learning_rate": 3e-3}
    more |= {"checkpointing_steps": 60, "validation_data": None, "commitment_weight": 0.0, "ema_decay": 0.8}
    run = train_file(train_uniwetok, write(tmp_path, {**plain, **more}, output_dir=str(tmp_path / "run"))).parent
    errors = [line["l1"] for line in log_lines(run)]
    assert sum(errors[-5:]) < 0.8 * sum(errors[:5])


def test_the_prior_may_be_a_class_to_image_model(fields, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "architecture": "class_to_image"}
    plain = {**fields, "perceptual": None, "adversarial": None, "distillation": None, "prior": sizes}
    with pytest.raises(ValueError, match="`prior`: `architecture: class_to_image` needs one square size in `buckets`"):
        train_file(train_uniwetok, write(tmp_path, plain, output_dir=str(tmp_path / "run")))
    more = {"buckets": [{"height": 32, "width": 32}], "max_train_steps": 2}
    run = train_file(train_uniwetok, write(tmp_path, plain, output_dir=str(tmp_path / "run"), **more)).parent
    assert 0.5 < log_lines(run)[0]["prior"] < 2
    assert "model.position_embedding.weight" in load_file(run / "losses" / "prior.safetensors")


@pytest.mark.parametrize(
    "section, values, message",
    [
        ("entropy", {"temperature": 0}, "`entropy.temperature` must be above 0, got 0"),
        ("perceptual", {"model": "nowhere/at_all/net"}, "`perceptual.model`: .*nowhere"),
        ("perceptual", {"model": "nowhere.safetensors"}, "`perceptual.model`: .*nowhere"),
        ("adversarial", {"num_layers": 0}, "`adversarial.num_layers` must be 1 or more, got 0"),
        ("adversarial", {"start_step": -1}, "`adversarial.start_step` must be 0 or more, got -1"),
        (
            "adversarial",
            {"num_layers": 4},
            "`adversarial.num_layers`=4 needs pictures of at least 48 pixels, .* of 16",
        ),
        ("adversarial", {"base_channels": 36}, "`adversarial`: num_channels .72. must be divisible"),
        ("distillation", {"teacher": "./nowhere"}, "`distillation.teacher`: .*no such folder"),
        ("distillation", {"hidden_size": 6}, "`distillation`: `hidden_size` must be a multiple of 4"),
        ("distillation", {"num_attention_heads": 0}, "`distillation.num_attention_heads` must be 1 or more, got 0"),
        ("prior", {"hidden_size": 6}, "`prior`: `hidden_size` must be a multiple of 4"),
        ("prior", {"num_attention_heads": 0}, "`prior.num_attention_heads` must be 1 or more, got 0"),
    ],
)
def test_settings_of_a_loss_are_named(fields, tmp_path, section, values, message):
    more = {section: (fields.get(section) or {}) | values}
    with pytest.raises(ValueError, match=message):
        train_file(train_uniwetok, write(tmp_path, {**fields, **more}, output_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_frozen_parts_stay_as_they_were(fields, trained, tmp_path):
    more = {"model": {}, "init_from": str(trained), "trainable": ["decoder"], "max_train_steps": 2}
    run = train_file(train_uniwetok, write(tmp_path, {**fields, **more}, output_dir=str(tmp_path / "run"))).parent
    before, after = (load_file(path / "model" / "model.safetensors") for path in (trained, run))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_accumulation_equals_whole_steps_but_for_the_batch_entropy(fields, tmp_path, micro_batches):
    """Losses are means over pictures, so micro-batches add up; only the batch's histogram sees what is in memory."""
    gradients = {}
    for count in (1, micro_batches):
        # With some seeds, gradients of 0.01 that nearly cancel are off by 3e-6.
        more = {"gradient_accumulation_steps": count, "output_dir": str(tmp_path / str(count)), "seed": 1}
        more |= {"entropy": {"batch_weight": 0.0}, "adversarial": {**fields["adversarial"], "start_step": 0}}
        gradients[count] = first_gradients(write(tmp_path, {**fields, **more}))
    for name, one in gradients[1].items():
        torch.testing.assert_close(
            one, gradients[micro_batches][name], atol=1e-6, rtol=1e-5, msg=lambda text: f"{name}: {text}"
        )


def first_gradients(path):
    """Gradients of the first step, of the model and of the discriminator, before clipping."""
    trainer = UniWeTokTrainer(read_config(UniWeTokTrainingConfig, path, max_train_steps=1, max_grad_norm=None))
    found = {}

    def keep(parameters, optimizer):
        name = "model" if optimizer is trainer.optimizer else "discriminator"
        found.update({f"{name}.{i}": p.grad.clone() for i, p in enumerate(parameters) if p.grad is not None})
        optimizer.zero_grad()
        return torch.zeros(())

    trainer.clip_gradients = keep
    trainer.train()
    return found


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(fields, tmp_path, monkeypatch):
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"), max_skipped_steps=0)
    numbers = iter(range(10))
    real = train_uniwetok.l1_loss
    monkeypatch.setattr(
        train_uniwetok, "l1_loss", lambda *args: real(*args) * (float("nan") if next(numbers) == 3 else 1)
    )
    with pytest.raises(
        FloatingPointError, match="Not finite at step 4: l1; the last good checkpoint is .*step-000002"
    ):
        train_file(train_uniwetok, path)
    monkeypatch.undo()
    assert train_file(train_uniwetok, path).exists()  # and can go on from there


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_learnt_from(fields, tmp_path, monkeypatch):
    """Its loss may be finite. Without clipping, too, nobody else looks at the gradients."""
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"), max_grad_norm=None, max_skipped_steps=0)
    numbers, real = iter(range(10)), train_uniwetok.l1_loss

    def spoilt(*args):
        loss = real(*args)
        if next(numbers) == 3:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    monkeypatch.setattr(train_uniwetok, "l1_loss", spoilt)
    with pytest.raises(FloatingPointError, match="Not finite at step 4: grad_norm; .*step-000002"):
        train_file(train_uniwetok, path)
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-000002" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_a_step_that_is_not_finite_is_skipped_as_a_whole(fields, tmp_path, monkeypatch):
    """Also when only the discriminator's loss is not: model, average, discriminator and metrics stay as they were."""
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"), gradient_accumulation_steps=2)
    trainer = UniWeTokTrainer(read_config(UniWeTokTrainingConfig, path))
    batches = iter(trainer.batches)
    for step in range(3):
        trainer.train_step(next(batches), step)

    def state():
        tensors = [*trainer.parameters, *trainer.discriminator.parameters(), *trainer.ema.shadow_params]
        tensors += [*trainer.lecam.buffers(), *trainer.metrics.sums.values(), trainer.bits.counts]
        return [tensor.detach().clone() for tensor in tensors]

    for name in ("l1_loss", "discriminator_loss"):
        before, real, calls = state(), getattr(train_uniwetok, name), iter(range(10))
        with monkeypatch.context() as patch:
            spoilt = lambda *args: real(*args) * (float("nan") if next(calls) == 1 else 1)  # noqa: E731
            patch.setattr(train_uniwetok, name, spoilt)
            trainer.train_step(next(batches), 3)
        assert all(torch.equal(one, other) for one, other in zip(before, state(), strict=True)), name
    trainer.train_step(next(batches), 5)
    assert not any(torch.equal(one, other) for one, other in zip(before[:1], state()[:1], strict=True))
    assert all(tensor.isfinite().all() for tensor in state())
    metrics = trainer.take_metrics()
    assert (
        metrics["skipped_steps"] == 2
        and metrics["steps_per_second"] > 0
        and trainer.scheduler.scheduler.last_epoch == 6
    )


def test_skipped_steps_are_counted_in_the_log_and_over_a_resume(fields, tmp_path, monkeypatch):
    """A checkpoint that is due waits for a good step. A line of the log without a good step has no losses."""
    real, bad = UniWeTokTrainer.compute_losses, {1, 3, 4}

    def spoilt(self, pixel_values, numbers, step):
        output, losses = real(self, pixel_values, numbers, step)
        if step in bad:
            losses["l1"] = (1.0, losses["l1"][1] * float("inf"))
        return output, losses

    monkeypatch.setattr(UniWeTokTrainer, "compute_losses", spoilt)
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"), max_skipped_steps=2)
    with pytest.raises(FloatingPointError, match="Not finite at step 5: l1, after 2 skipped steps .*step-000003"):
        train_file(train_uniwetok, path)
    bad.remove(4)
    run = train_file(train_uniwetok, path).parent
    lines = log_lines(run)
    assert [line.get("skipped_steps", 0) for line in lines] == [0, 1, 1, 2, 2, 2]
    assert "l1" not in lines[1] and "validation_psnr_32x32" in lines[2] and "psnr" in lines[5]


def test_micro_batches_may_change_when_a_run_is_resumed(fields, tmp_path, monkeypatch):
    """As after running out of memory. Every step still is one step of the optimizer."""
    few = {**fields, "max_train_steps": 3, "checkpointing_steps": 1, "validation_data": None}
    few |= {"entropy": {"batch_weight": 0.0}, "adversarial": None}
    rates = {}
    for name, later in {"same": 1, "more": 4}.items():
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            step = UniWeTokTrainer.train_step
            patch.setattr(UniWeTokTrainer, "train_step", lambda self, *a, s=step: interrupt(self, s, *a))
            train_file(train_uniwetok, write(tmp_path / name, few, output_dir=str(tmp_path / name / "run")))
        changed = write(
            tmp_path / name, few, gradient_accumulation_steps=later, output_dir=str(tmp_path / name / "run")
        )
        lines = log_lines(train_file(train_uniwetok, changed).parent)
        rates[name] = [line["learning_rate"] for line in lines], [line["l1"] for line in lines]
    assert rates["more"][0] == rates["same"][0]
    assert rates["more"][1] == pytest.approx(rates["same"][1], abs=1e-4)


def interrupt(trainer, train_step, batch, step):
    """A training step, until the second."""
    if step == 1:
        raise KeyboardInterrupt
    train_step(trainer, batch, step)


@pytest.mark.filterwarnings("ignore:`mixed_precision. bf16` is many times slower")
def test_frozen_networks_run_in_the_precision_of_the_training(fields, tmp_path, request):
    AcceleratorState._reset_state()  # it remembers the precision of the tests before
    request.addfinalizer(AcceleratorState._reset_state)
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"), mixed_precision="bf16", max_train_steps=1)
    trainer, seen = UniWeTokTrainer(read_config(UniWeTokTrainingConfig, path)), {}
    for name, network in {"teacher": trainer.teacher, "perceptual": trainer.perceptual}.items():
        layer = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
        layer.register_forward_hook(lambda module, args, output, name=name: seen.update({name: output.dtype}))
    trainer.train()
    assert seen == {"teacher": torch.bfloat16, "perceptual": torch.bfloat16}
    assert 0 < log_lines(tmp_path / "run")[0]["distillation"] < 4


def test_a_teacher_is_held_in_what_a_gpu_computes_with():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert teacher_dtype("bf16", gpu) == torch.bfloat16
    assert {teacher_dtype(*other) for other in (("no", gpu), ("fp16", gpu), ("bf16", cpu))} == {torch.float32}


def test_a_late_discriminator_has_the_whole_schedule(fields, tmp_path):
    late = {**fields, "adversarial": {**fields["adversarial"], "start_step": 3}, "lr_scheduler": "linear"}
    path = write(tmp_path, late, output_dir=str(tmp_path / "run"), validation_data=None)
    trainer = UniWeTokTrainer(read_config(UniWeTokTrainingConfig, path))
    trainer.train()
    assert trainer.discriminator_scheduler.get_last_lr() == [0.0]


def test_a_discriminator_may_have_a_rate_of_zero(fields, tmp_path):
    still = {**fields, "adversarial": {**fields["adversarial"], "learning_rate": 0.0}}
    trainer = UniWeTokTrainer(
        read_config(UniWeTokTrainingConfig, write(tmp_path, still, output_dir=str(tmp_path / "run")))
    )
    assert trainer.discriminator_optimizer.defaults["lr"] == 0.0


def test_a_model_of_its_own_is_refused_beside_another_start(fields, trained, tmp_path):
    with pytest.raises(ValueError, match="`model` can't be given together with `init_from`"):
        train_file(train_uniwetok, write(tmp_path, fields, init_from=str(trained), output_dir=str(tmp_path / "run")))


def test_a_batch_multiple_fixes_the_batches(fields, tmp_path):
    """Of 32 x 24 pixels, 5 pictures have no more than 4 of 32 x 32."""
    buckets = [{"height": 32, "width": 32}, {"height": 32, "width": 24}]
    sizes = {}
    for multiple in (None, 4):
        path = write(tmp_path, fields, output_dir=str(tmp_path / "run"), buckets=buckets, batch_multiple=multiple)
        sizes[multiple] = UniWeTokTrainer(read_config(UniWeTokTrainingConfig, path)).batches.batch_sizes
    assert sizes == {None: [4, 5], 4: [4, 4]}
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"), batch_multiple=3, gradient_accumulation_steps=2)
    with pytest.raises(
        ValueError, match="`batch_multiple` must be a multiple of 2 .processes x micro-batches., got 3"
    ):
        UniWeTokTrainer(read_config(UniWeTokTrainingConfig, path))


def test_a_truncated_checkpoint_is_refused_by_name(fields, tmp_path):
    path = write(tmp_path, {**fields, "max_train_steps": 2}, output_dir=str(tmp_path / "run"))
    run = train_file(train_uniwetok, path).parent
    (run / "model").rename(run / "model-before")
    file = run / "checkpoints" / "step-000002" / "optimizer.bin"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="step-000002 is broken: optimizer.bin has 100 of"):
        train_file(train_uniwetok, path)


def test_pictures_that_cannot_be_read_are_counted_and_named(fields, tmp_path, fixtures):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(5):
        Image.new("RGB", (32, 32), (40 * index, 0, 0)).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes((folder / "1.png").read_bytes()[:40])
    more = {"data": [{"path": str(folder)}], "output_dir": str(tmp_path / "run")}
    path = write(tmp_path, {**fields, **more})
    run = train_file(train_uniwetok, path).parent
    assert log_lines(run)[-1]["skipped_pictures"] > 0
    names = (run / "skipped-0.txt").read_text()
    assert "broken.png" in names and len(names.splitlines()) == log_lines(run)[-1]["skipped_pictures"]

    # A run that is resumed meets what came after the checkpoint again, and names it once.
    (run / "model").rename(run / "model-before")
    (run / "checkpoints" / "step-000006").rename(tmp_path / "last")
    assert train_file(train_uniwetok, path).exists()
    assert (run / "skipped-0.txt").read_text() == names


def test_a_finished_training_is_not_replaced(fields, trained, tmp_path):
    before = (trained / "model" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="`output_dir` .* holds the model of a finished training"):
        train_file(train_uniwetok, write(tmp_path, fields, output_dir=str(trained)))
    assert (trained / "model" / "model.safetensors").read_bytes() == before


def test_missing_data_leaves_no_folder_behind(fields, tmp_path):
    path = write(tmp_path, {**fields, "data": [{"path": str(tmp_path / "no")}]}, output_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="no"):
        train_file(train_uniwetok, path)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_processes_cannot_share_is_refused(fields, tmp_path):
    path = write(tmp_path, fields, output_dir=str(tmp_path / "run"), gradient_accumulation_steps=3)
    with pytest.raises(ValueError, match="`batch_size`=4 must be a multiple of processes x"):
        train_file(train_uniwetok, path)


@pytest.mark.parametrize("name", [name for name in shipped_configs() if "uniwetok" in name])
def test_shipped_configs_can_be_read(name):
    config = read_config(UniWeTokTrainingConfig, find_config(name))
    assert config.output_dir == f"runs/{name}"


def test_a_compiled_model_is_found_inside_of_ddp(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        network = torch.nn.Linear(2, 2)
        wrapped = torch.nn.parallel.DistributedDataParallel(torch.compile(network))
        trainer = SimpleNamespace(accelerator=Accelerator(cpu=True))
        assert UniWeTokTrainer.unwrap(trainer, wrapped) is network is UniWeTokTrainer.unwrap(trainer, network)
    finally:
        torch.distributed.destroy_process_group()


def test_validation_takes_large_pictures_one_by_one(fields, tmp_path, monkeypatch):
    seen = []
    forward = UniWeTokModel.forward
    monkeypatch.setattr(train_uniwetok, "VALIDATION_PIXELS", 2 * 32 * 32)
    monkeypatch.setattr(
        UniWeTokModel, "forward", lambda model, pixels, **more: seen.append(pixels) or forward(model, pixels, **more)
    )
    trainer = UniWeTokTrainer(
        read_config(UniWeTokTrainingConfig, write(tmp_path, fields, output_dir=str(tmp_path / "run")))
    )
    metrics = trainer.validate(1)
    assert [list(pixels.shape) for pixels in seen] == [[2, 3, 32, 32], [1, 3, 32, 32], [3, 3, 16, 32]]
    monkeypatch.undo()
    for name, value in trainer.validate(1).items():
        assert value == pytest.approx(metrics[name], rel=1e-5)
