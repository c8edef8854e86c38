import pytest
import torch

from uniwetok_hf.modeling.flow_uniwetok import BinaryFlow, flow_step, flow_timesteps, flow_velocity, shift_timesteps


BITS = 8


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_sampler(steps: int) -> BinaryFlow:
    sampler = BinaryFlow()
    sampler.set_timesteps(steps)
    return sampler


def test_even_grid_runs_from_0_to_095():
    torch.testing.assert_close(flow_timesteps(19), torch.linspace(0, 0.95, 20))


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_grids_ascend_from_0_to_095(steps, shift):
    times = flow_timesteps(steps, shift)
    assert len(times) == steps + 1
    assert times[0] == 0
    assert times[-1].item() == pytest.approx(0.95, abs=1e-7)
    assert (times.diff() > 0).all()


def test_shift_by_hand():
    assert shift_timesteps(torch.tensor(0.5), 3.0).item() == pytest.approx(0.25)
    assert shift_timesteps(torch.tensor(0.2), 1.0).item() == pytest.approx(0.2)
    assert flow_timesteps(2, 3.0)[1].item() == pytest.approx(0.95 * 0.25)


def test_velocity_by_hand():
    prediction, sample = torch.tensor([1.0]), torch.tensor([0.2])
    assert flow_velocity(prediction, sample, 0.6).item() == pytest.approx(2.0)
    assert flow_velocity(prediction, sample, 0.99).item() == pytest.approx(0.8 / 0.05)


@pytest.mark.parametrize("time", [0.0, 0.1, 0.5, 0.9, 0.94])
def test_step_is_the_score_form(time):
    generator = seeded(3)
    prediction, sample, noise = (torch.randn(4, BITS, generator=generator, dtype=torch.float64) for _ in range(3))
    step = 0.01
    velocity = (prediction - sample) / max(1 - time, 0.05)
    score = (time * velocity - sample) / (1 - time)
    drift = velocity + (1 - time) * score
    wanted = sample + drift * step + (2 * (1 - time) * step) ** 0.5 * noise
    moved = flow_step(prediction, sample, time, time + step, noise)
    torch.testing.assert_close(moved, wanted, atol=1e-6, rtol=0)


def test_last_step_is_the_prediction():
    prediction, sample = torch.randn(2, 2, BITS, generator=seeded(0))
    assert torch.equal(flow_step(prediction, sample, 0.95, None, None), prediction)
    assert torch.equal(make_sampler(4).advance(prediction, torch.tensor(0.95), sample), prediction)


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="num_inference_steps"):
        make_sampler(0)
