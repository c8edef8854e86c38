import json

import pytest
import torch

from uniwetok_hf import BinaryFlowScheduler, UniWeTokBinaryHead, UniWeTokHeadConfig
from uniwetok_hf.modeling.flow_uniwetok import BinaryFlow, flow_step, flow_timesteps
from uniwetok_hf.schedulers.scheduling_binary_flow import BinaryFlowSchedulerOutput


SHAPE = (2, 4, 8)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_scheduler(steps: int = 5, shift: float = 1.0, temperature: float = 1.0) -> BinaryFlowScheduler:
    scheduler = BinaryFlowScheduler(shift, temperature)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.fixture
def prediction() -> torch.Tensor:
    return torch.tanh(torch.randn(SHAPE, generator=seeded(1)))


@pytest.fixture
def sample() -> torch.Tensor:
    return torch.randn(SHAPE, generator=seeded(2))


@pytest.mark.parametrize("shift", [0.5, 1.0, 4.0])
def test_timesteps_ascend_to_095(shift):
    timesteps = make_scheduler(7, shift).timesteps
    assert len(timesteps) == 8
    assert timesteps[0] == 0
    assert (timesteps.diff() > 0).all()
    assert timesteps[-1].item() == pytest.approx(0.95)
    assert torch.equal(timesteps, flow_timesteps(7, shift))


def test_device_argument_is_accepted():
    scheduler = BinaryFlowScheduler()
    scheduler.set_timesteps(3, device="cpu")
    assert len(scheduler.timesteps) == 4


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="num_inference_steps"):
        make_scheduler(0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_step_is_flow_step(prediction, sample, index, shift):
    scheduler = make_scheduler(5, shift)
    now, later = scheduler.timesteps[index : index + 2]
    stepped = scheduler.step(prediction, now, sample, generator=seeded(3)).prev_sample
    noise = torch.randn(SHAPE, generator=seeded(3))
    assert torch.equal(stepped, flow_step(prediction, sample, now, later, noise))
    assert torch.equal(scheduler.step(prediction, now.item(), sample, generator=seeded(3)).prev_sample, stepped)


def test_last_step_is_the_prediction_and_draws_nothing(prediction, sample):
    scheduler, generator = make_scheduler(), seeded(3)
    state = generator.get_state()
    assert torch.equal(scheduler.step(prediction, scheduler.timesteps[-1], sample, generator).prev_sample, prediction)
    assert torch.equal(generator.get_state(), state)


def test_steps_keep_no_state(prediction, sample):
    """Every patch walks the same timesteps again."""
    scheduler = make_scheduler()
    first, again = (
        [scheduler.step(prediction, t, sample, seeded(0)).prev_sample for t in scheduler.timesteps] for _ in range(2)
    )
    for left, right in zip(first, again, strict=True):
        assert torch.equal(left, right)


def test_generator_is_the_only_source_of_noise(prediction, sample):
    scheduler = make_scheduler()
    torch_state = torch.get_rng_state()
    first, again, other = (
        scheduler.step(prediction, scheduler.timesteps[0], sample, seeded(s)).prev_sample for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_one_generator_a_row(prediction, sample):
    scheduler = make_scheduler()
    now = scheduler.timesteps[1]
    both = scheduler.step(prediction, now, sample, [seeded(4), seeded(5)]).prev_sample
    alone = scheduler.step(prediction[1:], now, sample[1:], [seeded(5)]).prev_sample
    torch.testing.assert_close(both[1:], alone)


def test_return_dict(prediction, sample):
    scheduler = make_scheduler()
    now = scheduler.timesteps[0]
    output = scheduler.step(prediction, now, sample, seeded(0))
    as_tuple = scheduler.step(prediction, now, sample, seeded(0), return_dict=False)
    assert isinstance(output, BinaryFlowSchedulerOutput)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 1
    assert torch.equal(output.prev_sample, as_tuple[0])


def test_saved_and_loaded(tmp_path):
    BinaryFlowScheduler(shift=3.0).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == "BinaryFlowScheduler" and saved["shift"] == 3.0
    loaded = BinaryFlowScheduler.from_pretrained(tmp_path)
    loaded.set_timesteps(6)
    assert torch.equal(loaded.timesteps, flow_timesteps(6, 3.0))


def test_another_scheduler_from_the_config():
    scheduler = BinaryFlowScheduler(shift=3.0)
    assert BinaryFlowScheduler.from_config(scheduler.config).shift == 3.0
    other = BinaryFlowScheduler.from_config(scheduler.config, shift=0.5)
    other.set_timesteps(4)
    assert other.config.shift == 0.5
    assert torch.equal(other.timesteps, flow_timesteps(4, 0.5))


def build_head() -> UniWeTokBinaryHead:
    config = UniWeTokHeadConfig(num_bits=8, condition_size=20, hidden_size=16, head_dim=8, num_hidden_layers=2)
    head = UniWeTokBinaryHead(config).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=seeded(parameter.numel())))
    return head


@pytest.mark.parametrize("shift, temperature", [(1.0, 1.0), (2.0, 0.5)])
def test_head_samples_the_same_with_either_sampler(shift, temperature):
    head, condition = build_head(), torch.randn(4, 4, 20, generator=seeded(1))
    plain = BinaryFlow(shift, temperature)
    plain.set_timesteps(5)
    with_plain = head.sample(condition, plain, 2.0, seeded(0))
    assert with_plain.abs().max() > 0.05
    assert torch.equal(with_plain, head.sample(condition, make_scheduler(5, shift, temperature), 2.0, seeded(0)))


# --- temperature ---


def test_the_temperature_multiplies_the_noise_of_a_step(prediction, sample):
    scheduler = make_scheduler(temperature=0.5)
    now, later = scheduler.timesteps[1:3]
    stepped = scheduler.step(prediction, now, sample, seeded(3)).prev_sample
    noise = 0.5 * torch.randn(SHAPE, generator=seeded(3))
    assert torch.equal(stepped, flow_step(prediction, sample, now, later, noise))


def test_the_temperature_multiplies_the_noise_of_the_start():
    """Also of noise that is given."""
    head, condition = build_head(), torch.randn(2, 4, 20, generator=seeded(1))
    scheduler, given = make_scheduler(1, temperature=0.25), torch.randn(2, 4, 8, generator=seeded(7))
    seen = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    head.sample(condition, scheduler, 1.0, seeded(0))
    assert torch.equal(seen[0], 0.25 * torch.randn(2, 4, 8, generator=seeded(0)))
    seen.clear()
    head.sample(condition, scheduler, 1.0, seeded(0), noise=given)
    assert torch.equal(seen[0], 0.25 * given)
    hook.remove()


def test_nothing_is_random_at_temperature_zero():
    head, condition = build_head(), torch.randn(2, 4, 20, generator=seeded(1))
    samples = [head.sample(condition, make_scheduler(temperature=0.0), 2.0, seeded(seed)) for seed in (0, 1)]
    assert torch.equal(*samples)
    warmer = head.sample(condition, make_scheduler(temperature=0.1), 2.0, seeded(0))
    assert not torch.equal(warmer, samples[0])


@pytest.mark.parametrize("value", [-0.1, True, "1", None, float("nan"), float("inf")])
def test_what_is_no_temperature_is_refused(value):
    with pytest.raises(ValueError, match="`temperature` must be a number of 0 or more, got"):
        BinaryFlowScheduler(temperature=value)


def test_the_temperature_is_saved_and_older_folders_have_one(tmp_path, fixtures):
    BinaryFlowScheduler(temperature=0.7).save_pretrained(tmp_path)
    loaded = BinaryFlowScheduler.from_pretrained(tmp_path)
    assert loaded.temperature == loaded.config.temperature == loaded.init_noise_sigma == 0.7
    older = BinaryFlowScheduler.from_pretrained(fixtures / "saved_by_84bac22" / "pipeline" / "scheduler")
    assert older.temperature == older.config.temperature == 1.0


# --- what diffusers expects of every scheduler ---


def test_what_code_for_any_scheduler_uses(sample):
    scheduler = BinaryFlowScheduler()
    assert scheduler.num_inference_steps is None and scheduler.init_noise_sigma == 1.0 and scheduler.order == 1
    scheduler.set_timesteps(5)
    assert scheduler.num_inference_steps == 5
    assert scheduler.scale_model_input(sample, scheduler.timesteps[0]) is sample
    assert scheduler.scale_model_input(sample) is sample
    assert BinaryFlowScheduler.from_config(scheduler.config).num_inference_steps is None  # not part of the config


def test_timesteps_stay_on_the_cpu():
    """Samplers read them one by one, and would wait for a device each time."""
    scheduler = make_scheduler()
    scheduler.set_timesteps(3, device="meta")
    assert scheduler.timesteps.device.type == "cpu" and len(scheduler.timesteps) == 4


def test_bits_that_noise_is_added_to_are_floats():
    bits = torch.ones(2, 4, dtype=torch.int8)
    with pytest.raises(ValueError, match="`original_samples` must be floats, got torch.int8"):
        make_scheduler().add_noise(bits, torch.zeros(2, 4), 0.5)


def test_add_noise_is_what_the_head_learns_to_take_back(sample):
    """(1 - t) noise + t bits, as in `UniWeTokBinaryHead.losses_at`."""
    scheduler, noise = BinaryFlowScheduler(), torch.randn(SHAPE, generator=seeded(4))
    assert torch.equal(scheduler.add_noise(sample, noise, torch.tensor([0.0])), noise)
    assert torch.equal(scheduler.add_noise(sample, noise, 1.0), sample)
    rows = scheduler.add_noise(sample, noise, torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(rows[0], 0.75 * noise[0] + 0.25 * sample[0])
    torch.testing.assert_close(rows[1], 0.25 * noise[1] + 0.75 * sample[1])
    scheduler.set_timesteps(50)
    assert scheduler.add_noise(sample, noise, scheduler.timesteps[5][None]).shape == sample.shape


@pytest.mark.parametrize("timesteps", [torch.tensor([0.1, 0.2, 0.3]), 999, torch.tensor([-0.1, 0.5])])
def test_add_noise_names_wrong_timesteps(sample, timesteps):
    with pytest.raises(ValueError, match="`timesteps`"):
        BinaryFlowScheduler().add_noise(sample, sample, timesteps)


def test_add_noise_names_noise_of_another_shape(sample):
    with pytest.raises(ValueError, match="`noise`"):
        BinaryFlowScheduler().add_noise(sample, sample[:1], 0.5)
