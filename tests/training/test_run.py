"""What both trainers share."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from PIL import Image

from uniwetok_hf.training.config import absolute_paths
from uniwetok_hf.training.run import (
    CheckpointClock,
    MovingAverage,
    RunningMetrics,
    SkippedSamples,
    StepGuard,
    averaged_weights,
    choose_parameters,
    choose_precision,
    log_images,
    make_average,
    picture_grid,
    seeded_weights,
)
from uniwetok_hf.training.trackers import JsonLinesTracker


def test_metrics_are_means_since_the_last_line():
    accelerator, metrics = Accelerator(cpu=True), RunningMetrics()
    metrics.add({"loss": torch.tensor(1.0), "norm": 3.0}, items=4)
    metrics.add({"loss": torch.tensor(2.0)}, items=4)
    taken = metrics.take(accelerator, "pictures")
    assert taken["loss"] == 1.5 and taken["norm"] == 3.0
    assert taken["pictures_per_second"] == pytest.approx(4 * taken["steps_per_second"]) and metrics.steps == 0
    metrics.add({"loss": 5.0})
    assert metrics.take(accelerator, "pictures")["loss"] == 5.0


def test_metrics_survive_a_checkpoint():
    accelerator, metrics, resumed = Accelerator(cpu=True), RunningMetrics(), RunningMetrics()
    metrics.add({"loss": torch.tensor(0.1)})
    resumed.load_state_dict(json.loads(json.dumps(metrics.state_dict())))
    for each in (metrics, resumed):
        each.add({"loss": torch.tensor(0.3)})
    assert metrics.take(accelerator, "x")["loss"] == resumed.take(accelerator, "x")["loss"]


def test_a_list_of_skipped_samples_that_is_cut_inside_a_letter_is_rewound(tmp_path):
    skipped = SkippedSamples(tmp_path, 0, 1.0)
    skipped.note(["row 3: café"], 4)
    state = skipped.state_dict()
    skipped.note(["row 7: café"], 4)
    skipped.file.write_bytes(skipped.file.read_bytes()[:-2])
    skipped.load_state_dict(state)
    assert skipped.file.read_text(encoding="utf-8") == "row 3: café\n" and skipped.count == 1


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
    assert Image.open(tmp_path / "samples" / "grid-000012.png").copy().size == (4, 4)
    assert json.loads((tmp_path / "config.json").read_text()) == {"batch_size": 3}


def test_paths_become_absolute_where_they_are_some(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("codes", "captions", "edits"):
        (tmp_path / name).mkdir()
    source = {"path": "codes", "task": "captions", "columns": {"path": "codes"}, "options": {"table": "edits", "n": 3}}
    settings = {"output_dir": "run", "init_from": "uniwetok-emoji", "data": [source, {"path": "web/*.tar"}], "seed": 0}
    absolute = absolute_paths(settings)
    assert absolute["output_dir"] == str(tmp_path / "run") and absolute["init_from"] == "uniwetok-emoji"
    first, second = absolute["data"]
    assert first == {
        "path": str(tmp_path / "codes"),
        "task": "captions",
        "columns": {"path": "codes"},
        "options": {"table": str(tmp_path / "edits"), "n": 3},
    }
    assert second == {"path": str(tmp_path / "web" / "*.tar")}
    assert absolute_paths(absolute) == absolute


def test_a_text_among_options_is_no_path(tmp_path, monkeypatch):
    """Whatever characters it has: only what exists is one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edits").mkdir()
    options = {"question": "what is this?", "texts": ["is it [red]?", "a" * 5000, ""], "path": "edits"}
    settings = {"data": [{"options": options}], "lora": {"options": {"target_modules": ".*q_proj"}}}
    absolute = absolute_paths(settings)
    assert absolute["data"] == [{"options": options | {"path": str(tmp_path / "edits")}}]
    assert absolute["lora"] == settings["lora"]


def test_addresses_are_no_paths():
    settings = {"output_dir": "s3://runs/x", "data": [{"path": "hf://datasets/a/b/*.parquet"}], "model": "s3://a/b"}
    assert absolute_paths(settings) == settings


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_steps_that_are_not_finite_are_skipped_up_to_a_limit(bad, tmp_path, capsys):
    good, norm = {"a": torch.ones(2), "b": torch.zeros(1)}, {"norm": torch.tensor(1.0)}
    spoilt = good | {"b": torch.tensor([0.0, bad])}
    guard = StepGuard(Accelerator(cpu=True), tmp_path, max_skipped_steps=2)
    assert guard.allows(good, norm, 0) and not guard.was_skipped
    assert not guard.allows(spoilt, {"norm": torch.tensor(bad)}, 1) and guard.was_skipped
    assert "Step 2 is skipped: not finite: b (1 of at most 2 such steps)" in capsys.readouterr().err
    assert guard.allows(good, norm, 2) and not guard.was_skipped
    assert not guard.allows(good, {"norm": torch.tensor(bad)}, 3)
    assert guard.num_skipped == 2
    message = r"Not finite at step 5: b, after 2 skipped steps \(`max_skipped_steps`\); there is no checkpoint yet"
    with pytest.raises(FloatingPointError, match=message):
        guard.allows(spoilt, norm, 4)
    guard.resume(2)  # with the whole limit again
    assert not guard.allows(spoilt, norm, 2) and guard.num_skipped == 3


def test_what_a_gradient_scaler_skips_does_not_count(tmp_path):
    guard = StepGuard(accelerator := Accelerator(cpu=True), tmp_path, max_skipped_steps=0)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    good, overflow = {"loss": torch.ones(1)}, {"norm": torch.tensor(float("inf"))}
    assert not guard.allows(good, overflow, 0) and guard.was_skipped and guard.num_skipped == 0
    with pytest.raises(FloatingPointError, match="Not finite at step 2: loss"):  # whatever the scale
        guard.allows({"loss": torch.tensor(float("nan"))}, overflow, 1)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    with pytest.raises(FloatingPointError, match="Not finite at step 3: norm"):  # not the scale's fault
        guard.allows(good, overflow, 2)


def test_new_weights_follow_the_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    weights = []
    for seed in (1, 1, 2):
        with seeded_weights(seed):
            weights.append(torch.nn.Linear(3, 3).weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_the_average_has_one_decay_from_the_second_step_on():
    weight = torch.nn.Parameter(torch.zeros(1))
    ema = make_average([weight], 0.9, num_steps=100)
    values = []
    for step in range(4):
        weight.data.fill_(float(step + 1))
        ema.step([weight])
        values.append(ema.shadow_params[0].item())
    assert values == pytest.approx([1.0, 1.1, 1.29, 1.561])


def test_a_decay_too_slow_for_the_run_warns():
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    with pytest.warns(UserWarning, match=r"`ema_decay: 0.999` is slow for 60 steps: 94% .* 0.833 or less"):
        make_average(parameters, 0.999, num_steps=60)
    for decay in (-0.1, 1.0):
        with pytest.raises(ValueError, match="`ema_decay` must be 0 or more and below 1"):
            make_average(parameters, decay, num_steps=10)


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True, "avx512_bf16": False}, "no")],
)
def test_auto_precision_is_what_the_processor_does_fast(capabilities, chosen, monkeypatch, recwarn):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert choose_precision("auto") == chosen
    assert [choose_precision(value) for value in (None, "no", "fp16")] == [None, "no", "fp16"]
    assert not recwarn.list
    assert choose_precision("bf16") == "bf16"
    assert [("many times slower" in str(warning.message)) for warning in recwarn.list] == [True] * (chosen == "no")
    with pytest.raises(ValueError, match="`mixed_precision` must be auto, no, fp16 or bf16, got 'int8'"):
        choose_precision("int8")


def test_a_checkpoint_is_due_by_steps_and_by_minutes(monkeypatch):
    config = SimpleNamespace(checkpointing_steps=5, checkpointing_minutes=1.0, logging_steps=2)
    now = [0.0]
    monkeypatch.setattr("uniwetok_hf.training.run.time.monotonic", lambda: now[0])
    clock = CheckpointClock(Accelerator(cpu=True), config)

    def due(step: int, seconds: float) -> bool:
        now[0] = seconds
        return clock.is_due(step)

    assert not due(1, 70)  # late, but no line of the log
    assert due(2, 71)
    assert not due(4, 130)  # 59 seconds after the last one
    assert due(5, 131)
    assert not due(6, 180)
    assert due(8, 192)
    config.checkpointing_minutes = None
    assert not due(12, 1000) and due(15, 1001)


def test_seeded_weights_leave_the_generators_of_gpus_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs were seeded"))
    with seeded_weights(1):
        torch.nn.Linear(3, 3)


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
    assert len(choose_parameters(model, [])) == 4
    chosen = choose_parameters(model, ["decoder.weight"])
    assert len(chosen) == 1 and chosen[0] is model["decoder"].weight
    assert not model["encoder"].weight.requires_grad
    assert len(choose_parameters(model, [r"^(en|de)coder\.bias$"])) == 2
    assert choose_parameters(model, [], never=["^encoder", "bias"]) == [model["decoder"].weight]
    with pytest.raises(ValueError, match="no parameter's name matches 'head'; the parts are decoder, encoder"):
        choose_parameters(model, ["head"])
    with pytest.raises(ValueError, match="no parameter's name matches 'encoder'; the parts are decoder"):
        choose_parameters(model, ["encoder"], never=["^encoder"])


def test_a_grid_holds_its_pictures_row_by_row():
    greys = [torch.full((3, 4, 6), value) for value in (-1.0, 0.0, 1.0)]
    grid = picture_grid(greys, columns=2)
    assert grid.size == (16, 12)
    assert [grid.getpixel(at)[0] for at in ((3, 2), (11, 2), (3, 8), (11, 8))] == [0, 128, 255, 255]


def test_averages_are_those_of_diffusers_and_made_in_place():
    parameters = [
        torch.nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(0))) for size in (3, 700)
    ]
    expected = EMAModel(parameters, decay=0.9, min_decay=0.9)
    averages = MovingAverage(parameters, decay=0.9, min_decay=0.9)
    places = [average.data_ptr() for average in averages.shadow_params]
    for _ in range(4):
        for parameter in parameters:
            parameter.data.mul_(1.5)
        expected.step(parameters)
        averages.step(parameters)
    for first, second in zip(expected.shadow_params, averages.shadow_params, strict=True):
        torch.testing.assert_close(first, second)
    assert [average.data_ptr() for average in averages.shadow_params] == places
    assert expected.optimization_step == averages.optimization_step == 4
