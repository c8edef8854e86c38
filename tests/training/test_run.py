"""What both trainings do around their steps."""

import json

import pytest
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from PIL import Image

from uniwetok_hf.training.run import (
    Figures,
    JsonLinesTracker,
    averaged_weights,
    log_images,
    seeded_weights,
    stop_unless_finite,
    trainable_parameters,
)


def test_figures_are_means_since_the_last_line():
    accelerator, figures = Accelerator(cpu=True), Figures()
    figures.add({"loss": torch.tensor(1.0), "norm": 3.0}, items=4)
    figures.add({"loss": torch.tensor(2.0)}, items=4)
    taken = figures.take(accelerator, "pictures")
    assert taken["loss"] == 1.5 and taken["norm"] == 3.0
    assert taken["pictures_per_second"] == pytest.approx(4 * taken["steps_per_second"]) and figures.steps == 0
    figures.add({"loss": 5.0})
    assert figures.take(accelerator, "pictures")["loss"] == 5.0


def test_figures_survive_a_checkpoint():
    accelerator, figures, resumed = Accelerator(cpu=True), Figures(), Figures()
    figures.add({"loss": torch.tensor(0.1)})
    resumed.load_state_dict(json.loads(json.dumps(figures.state_dict())))
    for each in (figures, resumed):
        each.add({"loss": torch.tensor(0.3)})
    assert figures.take(accelerator, "x")["loss"] == resumed.take(accelerator, "x")["loss"]


def test_the_log_is_rewound_to_the_checkpoint(tmp_path):
    tracker = JsonLinesTracker(tmp_path)
    tracker.rewind(3)
    for step in (1, 2, 3):
        tracker.log({"loss": 1 / 3, "stuck": 2}, step=step)
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write('{"step": 4, "lo')
    tracker.rewind(2)
    tracker.log({"loss": 0.5}, step=3)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": 0.333333, "stuck": 2},
        {"step": 2, "loss": 0.333333, "stuck": 2},
        {"step": 3, "loss": 0.5},
    ]


def test_pictures_are_logged(tmp_path):
    accelerator = Accelerator(cpu=True, log_with=[JsonLinesTracker(tmp_path)])
    accelerator.init_trackers("test", {"batch_size": 3})
    log_images(accelerator, {"grid": Image.new("RGB", (4, 4))}, step=12)
    assert Image.open(tmp_path / "samples" / "grid-000012.png").size == (4, 4)
    assert json.loads((tmp_path / "config.json").read_text()) == {"batch_size": 3}


def test_a_loss_that_is_not_finite_is_named(tmp_path):
    accelerator = Accelerator(cpu=True)
    stop_unless_finite(accelerator, {"a": torch.tensor(1.0), "b": torch.zeros(1)}, 4, tmp_path)
    for bad in (float("nan"), float("inf")):
        losses = {"a": torch.tensor(1.0), "b": torch.tensor(bad)}
        with pytest.raises(FloatingPointError, match="Not finite at step 5: b; there is no checkpoint yet"):
            stop_unless_finite(accelerator, losses, 4, tmp_path)


def test_new_weights_follow_the_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    weights = []
    for seed in (1, 1, 2):
        with seeded_weights(seed):
            weights.append(torch.nn.Linear(3, 3).weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_averaged_weights_are_taken_back():
    model = torch.nn.Linear(2, 2)
    parameters = list(model.parameters())
    ema = EMAModel(parameters, decay=0.5)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    with pytest.raises(KeyError), averaged_weights(ema, parameters):
        assert torch.equal(model.weight, before)
        raise KeyError
    assert torch.equal(model.weight, before + 1)


def test_trainable_parts_are_chosen_by_name():
    model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2), "decoder": torch.nn.Linear(2, 2)})
    assert len(trainable_parameters(model, [])) == 4
    chosen = trainable_parameters(model, ["decoder.weight"])
    assert len(chosen) == 1 and chosen[0] is model["decoder"].weight
    assert not model["encoder"].weight.requires_grad
    with pytest.raises(ValueError, match="no parameter begins with 'head'; the parts are decoder, encoder"):
        trainable_parameters(model, ["head"])
