"""Muon for matrices beside AdamW for the rest, by itself and in a training of the language model."""

import copy

import pytest
import torch
from tiny_encoded import language_training, later, run, stop_before
from tiny_training import assert_same_weights, log_lines
from torch import nn

from uniwetok_hf.training.muon import MuonWithAdamW, muon_groups


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.lm_head = nn.Linear(4, 5)

    def forward(self, numbers):
        hidden = self.embed(numbers)
        for layer in self.layers:
            hidden = hidden + layer(hidden).relu()
        return self.lm_head(hidden)


OPTIONS = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "fused": True}


def build(seed: int = 0) -> tuple[Net, MuonWithAdamW]:
    torch.manual_seed(seed)
    net = Net()
    return net, MuonWithAdamW(muon_groups(net, list(net.parameters())), **OPTIONS)


def take_steps(net: Net, optimizer, count: int = 3) -> None:
    for step in range(count):
        loss = nn.functional.cross_entropy(net(torch.arange(5)), torch.arange(5).roll(1 + step % 2))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_matrices_of_layers_are_muons():
    net, optimizer = build()
    muon, adamw = optimizer.param_groups
    assert [tuple(p.shape) for p in muon["params"]] == [(4, 4), (4, 4)] and muon["use_muon"]
    assert len(adamw["params"]) == 5 and not adamw["use_muon"]
    [group] = muon_groups(net, [net.layers[0].weight])
    assert group["params"] == [net.layers[0].weight]
    with pytest.raises(ValueError, match="`optimizer` muon is for the matrices of layers, and none of them trains"):
        muon_groups(net, [net.lm_head.weight, net.layers[0].bias])


def test_steps_are_those_of_both_optimizers_of_torch():
    net, optimizer = build()
    take_steps(net, optimizer)
    torch.manual_seed(0)
    other = Net()
    matrices = [layer.weight for layer in other.layers]
    rest = [p for p in other.parameters() if all(p is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, **OPTIONS)
    for step in range(3):
        nn.functional.cross_entropy(other(torch.arange(5)), torch.arange(5).roll(1 + step % 2)).backward()
        for one in (muon, adamw):
            one.step()
            one.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_a_schedule_and_a_saved_state_reach_both():
    net, optimizer = build()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = [p.detach().clone() for p in net.parameters()]
    take_steps(net, optimizer)
    schedule.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))

    net, optimizer = build()
    take_steps(net, optimizer)
    again, fresh = build()
    again.load_state_dict(net.state_dict())
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(net, optimizer, 2)
    take_steps(again, fresh, 2)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    more = {"optimizer": "muon", "learning_rate": 1e-3, "validation_data": []}
    return language_training(tmp_path_factory.mktemp("language")) | more


MODEL = ("pipeline", "mllm", "model.safetensors")


def test_a_training_stops_and_resumes_exactly(fields, tmp_path, monkeypatch):
    straight = run(fields, tmp_path / "straight")
    stop_before(3, monkeypatch, fields, tmp_path / "stopped")
    resumed = run(fields, tmp_path / "stopped")
    assert_same_weights(resumed.joinpath(*MODEL), straight.joinpath(*MODEL))
    assert log_lines(resumed) == log_lines(straight)
    other = run(fields | {"optimizer": "adamw"}, tmp_path / "adamw")
    assert log_lines(other)[0]["loss"] == log_lines(straight)[0]["loss"]
    assert log_lines(other)[-1]["loss"] != log_lines(straight)[-1]["loss"]


def test_adapters_have_no_matrices_of_layers(fields, tmp_path):
    trained = run(fields | {"max_train_steps": 1}, tmp_path)
    with pytest.raises(ValueError, match="`optimizer` muon is for the matrices of layers"):
        run(later(fields, init_from=str(trained), lora={}), tmp_path / "lora")
