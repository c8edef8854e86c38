import pytest
import torch

from uniwetok_hf.modeling.noise_uniwetok import draw_noise, draw_uniform


CPU = torch.device("cpu")
SHAPE = (3, 16, 2, 5)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_one_generator_is_torchs_own_draw():
    assert torch.equal(draw_noise(SHAPE, seeded(7), CPU), torch.randn(SHAPE, generator=seeded(7)))


def test_generator_moves_on():
    generator = seeded(7)
    assert not torch.equal(draw_noise(SHAPE, generator, CPU), draw_noise(SHAPE, generator, CPU))


@pytest.mark.parametrize("sequence", [list, tuple])
def test_each_generator_draws_its_row_alone(sequence):
    noise = draw_noise(SHAPE, sequence(seeded(seed) for seed in (1, 2, 1)), CPU)
    assert noise.shape == SHAPE
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(noise[1:2], draw_noise((1, *SHAPE[1:]), seeded(2), CPU))


def test_a_generator_named_several_times_draws_its_rows_together():
    first, second = seeded(1), seeded(2)
    noise = draw_noise((5, 40), [first, first, second, second, second], CPU)
    assert torch.equal(noise, torch.cat([draw_noise((2, 40), seeded(1), CPU), draw_noise((3, 40), seeded(2), CPU)]))
    # Wherever they are: 40 numbers are no multiple of what torch draws at a time, so that 2 x 40 are not 80.
    one, other = seeded(1), seeded(2)
    apart = draw_noise((5, 40), [one, other, one, other, other], CPU)
    assert torch.equal(apart[[0, 2]], draw_noise((2, 40), seeded(1), CPU))
    assert torch.equal(apart[[1, 3, 4]], draw_noise((3, 40), seeded(2), CPU))


def test_uniform_noise():
    noise = draw_uniform((3, 4000), [seeded(seed) for seed in (1, 2, 1)], CPU)
    assert torch.equal(noise[0], torch.rand(4000, generator=seeded(1)))
    assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])
    assert noise.min() >= 0 and noise.max() < 1 and abs(noise.mean() - 0.5) < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precision_does_not_change_the_numbers(dtype, device):
    noise = draw_noise(SHAPE, seeded(7), device, dtype)
    assert noise.dtype == dtype and noise.device.type == device.type
    assert torch.equal(noise.cpu(), torch.randn(SHAPE, generator=seeded(7)).to(dtype))


def test_moments():
    noise = draw_noise((200_000,), seeded(0), CPU)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01


def test_passed_generators_leave_the_global_one_alone():
    before = torch.get_rng_state()
    draw_noise(SHAPE, seeded(1), CPU)
    draw_noise((2, 4), [seeded(1), seeded(2)], CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_generator_every_draw_differs(device):
    assert not torch.equal(draw_noise(SHAPE, None, device), draw_noise(SHAPE, None, device))


@pytest.mark.parametrize("count", [0, 2, 4])
def test_one_generator_a_row(count):
    with pytest.raises(ValueError, match=f"`generator` is a list of {count}, but 3"):
        draw_noise(SHAPE, [seeded(i) for i in range(count)], CPU)
