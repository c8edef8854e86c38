"""Checkpoints that are written in the background, in one process: what is saved is what was when it was saved, and it
counts when all of it is on disk. Two processes that shard are in test_processes.py."""

import shutil
from concurrent.futures import wait

import pytest
import torch
from accelerate import Accelerator
from torch import distributed

from uniwetok_hf.training.checkpoints import CheckpointWriter, list_checkpoints, load_checkpoint
from uniwetok_hf.training.run import make_average
from uniwetok_hf.training.sharding import ShardedState, precision_policy


@pytest.fixture
def training():
    """An Accelerator, a model with averages one step in, and what saves both."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    accelerator, model = Accelerator(cpu=True), torch.nn.Linear(300, 200)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    average = make_average(list(model.parameters()), 0.5, 10)
    average.step(list(model.parameters()))
    yield accelerator, model, average, ShardedState(accelerator, model, optimizer, average, ["weight", "bias"])
    distributed.destroy_process_group()


def test_what_is_saved_is_what_was_when_it_was_saved(training, tmp_path):
    """Although the training goes on while it is written."""
    accelerator, model, average, shards = training
    steps = []
    writer = CheckpointWriter(accelerator, tmp_path, 2, shards, steps.append)
    weights, averages = model.weight.detach().clone(), average.shadow_params[0].clone()
    writer.save(3, {"position": 1})
    with torch.no_grad():
        model.weight.add_(1)
        average.shadow_params[0].add_(1)
    assert not list_checkpoints(tmp_path)  # it does not count yet
    wait([writer.background], 60)
    writer.poll()
    assert steps == [3] and [path.name for path in list_checkpoints(tmp_path)] == ["step-000003"]
    writer.finish()
    assert load_checkpoint(accelerator, tmp_path, shards=shards) == (3, {"position": 1})
    assert torch.equal(model.weight, weights) and torch.equal(average.shadow_params[0], averages)


def test_the_next_checkpoint_waits_for_the_one_before(training, tmp_path):
    accelerator, _, _, shards = training
    writer = CheckpointWriter(accelerator, tmp_path, 2, shards)
    for step in range(1, 5):
        writer.save(step, {})
    writer.finish()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000003", "step-000004"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_an_error_does_not_lose_what_is_on_its_way(training, tmp_path):
    accelerator, _, _, shards = training
    writer = CheckpointWriter(accelerator, tmp_path, 2, shards)
    writer.save(7, {})
    writer.rescue()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000007"]


def test_a_folder_that_is_gone_is_told(training, tmp_path):
    """By the flag that goes with the next step, and then by name; the next checkpoint is written again."""
    accelerator, _, _, shards = training
    writer = CheckpointWriter(accelerator, tmp_path, 2, shards)
    writer.save(1, {})
    wait([writer.background], 60)
    shutil.rmtree(tmp_path / "checkpoints")
    writer.poll()
    assert writer.has_failed and not list_checkpoints(tmp_path)
    with pytest.raises(OSError, match="step-000001 can't be written"):
        writer.finish()
    assert not writer.has_failed
    writer.save(2, {})
    writer.finish()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000002"]


def test_shards_of_an_earlier_version(training, tmp_path):
    """Weights, optimizer and averages in folders of their own, as commit bae85c1 saved them with Accelerate."""
    accelerator, model, average, shards = training
    state = shards.state_dict()
    for folder, parts in {
        "pytorch_model_fsdp_0": ["model"],
        "optimizer_0": ["optimizer"],
        "averages": ["averages", "steps"],
    }.items():
        distributed.checkpoint.save({part: state[part] for part in parts}, checkpoint_id=tmp_path / folder)
    shards.save_small(tmp_path)
    optimizer, weights, averages = shards.optimizer, model.weight.detach().clone(), average.shadow_params[0].clone()
    moments = optimizer.state[model.weight]["exp_avg"].clone()
    with torch.no_grad():
        for tensor in (model.weight, average.shadow_params[0], optimizer.state[model.weight]["exp_avg"]):
            tensor.zero_()
    average.optimization_step = 7
    shards.load(tmp_path)
    assert torch.equal(model.weight, weights) and torch.equal(average.shadow_params[0], averages)
    assert torch.equal(optimizer.state[model.weight]["exp_avg"], moments) and average.optimization_step == 1


def test_gradients_and_losses_of_shards_are_float32():
    policy, whole = precision_policy("bf16"), precision_policy("no")
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (torch.bfloat16, torch.float32, None)
    assert (whole.param_dtype, whole.reduce_dtype, whole.output_dtype) == (None, None, None)
