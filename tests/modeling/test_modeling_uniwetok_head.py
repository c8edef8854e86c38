import math

import pytest
import torch
from torch.nn import functional as F

from uniwetok_hf import UniWeTokBinaryHead, UniWeTokHeadConfig
from uniwetok_hf.modeling import modeling_uniwetok_head
from uniwetok_hf.modeling.flow_uniwetok import BinaryFlow, flow_timesteps


BITS, CONDITION = 8, 20


def make_head(seed: int = 0, **fields) -> UniWeTokBinaryHead:
    """A tiny head with random weights everywhere: a new one predicts 0, whatever it is given."""
    config = {"num_bits": BITS, "condition_size": CONDITION, "hidden_size": 16, "head_dim": 8, "num_hidden_layers": 4}
    head = UniWeTokBinaryHead(UniWeTokHeadConfig(**config | fields)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise) if parameter.ndim == 1 else parameter.copy_(noise / parameter.shape[1] ** 0.5)
    return head


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_inputs(patches: int, tokens: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = seeded(seed)
    noisy = torch.randn(patches, tokens, BITS, generator=generator)
    times = torch.rand(patches, generator=generator)
    return noisy, times, torch.randn(patches, tokens, CONDITION, generator=generator)


def make_sampler(steps: int, shift: float = 1.0) -> BinaryFlow:
    sampler = BinaryFlow(shift)
    sampler.set_timesteps(steps)
    return sampler


# --- the network ---


@pytest.mark.parametrize("hidden_act", ["swiglu", "silu"])
@pytest.mark.parametrize("tokens", [1, 4])
def test_predictions_are_float32_within_one(tokens, hidden_act):
    head = make_head(hidden_act=hidden_act)
    noisy, times, condition = make_inputs(3, tokens)
    prediction = head(noisy, times, condition)
    assert prediction.shape == (3, tokens, BITS)
    assert 0.1 < prediction.abs().max() < 1
    low = head.bfloat16()(noisy, times, condition.bfloat16())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, prediction, atol=0.1, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_low_precision_is_close_to_float32(dtype, device):
    head = make_head().to(device)
    noisy, times, condition = (tensor.to(device) for tensor in make_inputs(3, 4))
    expected = head(noisy, times, condition)
    prediction = head.to(dtype)(noisy, times, condition.to(dtype))
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01
    assert (prediction - expected).abs().max() < tolerance * expected.abs().max()


def test_a_new_head_predicts_zero():
    config = UniWeTokHeadConfig(num_bits=BITS, condition_size=CONDITION, hidden_size=16, head_dim=8)
    head = UniWeTokBinaryHead(config)
    assert head(*make_inputs(2, 4)).abs().max() == 0
    assert head.layers[0].self_attn.q_proj.weight.abs().max() > 0


def test_squashed_output_is_two_sigmoid_minus_one():
    inputs = make_inputs(2, 4)
    linear = make_head(squash_output=False)(*inputs)
    torch.testing.assert_close(make_head()(*inputs), 2 * torch.sigmoid(linear) - 1)
    assert linear.abs().max() > 1


def test_each_input_matters():
    head = make_head()
    noisy, times, condition = make_inputs(2, 4)
    prediction = head(noisy, times, condition)
    for other in ((noisy + 1, times, condition), (noisy, times * 0.5, condition), (noisy, times, condition + 1)):
        assert not torch.allclose(head(*other), prediction, atol=1e-3)


def test_tokens_of_a_patch_see_each_other_and_no_other_patch():
    head = make_head()
    noisy, times, condition = make_inputs(2, 4)
    before = head(noisy, times, condition)
    noisy[0, 0] += 1
    after = head(noisy, times, condition)
    assert (after[0] - before[0]).abs().amax(1).min() > 1e-5  # every token of the patch moves
    torch.testing.assert_close(after[1], before[1])


def test_one_token_takes_the_same_path_as_many():
    """Attention over copies of one token is that token's value, which is the shortcut taken for patches of one."""
    head = make_head()
    noisy, times, condition = make_inputs(3, 1)
    single = head(noisy, times, condition)
    copies = head(noisy.expand(-1, 4, -1), times, condition.expand(-1, 4, -1))
    torch.testing.assert_close(copies, single.expand(-1, 4, -1), atol=1e-6, rtol=1e-5)


def test_eager_and_sdpa_attention_agree():
    inputs = make_inputs(2, 9)
    head = make_head()
    head.set_attn_implementation("sdpa")
    sdpa = head(*inputs)
    head.set_attn_implementation("eager")
    torch.testing.assert_close(head(*inputs), sdpa, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("num_modulation_layers", [1, 2, 4])
def test_consecutive_blocks_share_a_modulation(num_modulation_layers):
    head = make_head(num_modulation_layers=num_modulation_layers)
    assert len(head.modulations) == num_modulation_layers
    made, used = [], []
    for linear in head.modulations:
        linear.register_forward_hook(lambda module, inputs, output: made.append(output))
    for layer in head.layers:
        layer.register_forward_pre_hook(lambda module, inputs: used.append(inputs[1:]))
    head(*make_inputs(2, 4))
    assert len(made) == num_modulation_layers
    for index, (scale1, shift1, gate1, scale2, shift2, gate2) in enumerate(used):
        modulation = torch.cat([scale1 - 1, shift1, gate1, scale2 - 1, shift2, gate2], dim=-1)
        torch.testing.assert_close(modulation, made[index * num_modulation_layers // 4], atol=1e-6, rtol=0)


@pytest.mark.parametrize("rows", [1, 12, 1000], ids=["step by step", "three at once", "all at once"])
def test_modulations_of_several_steps_are_made_at_once(monkeypatch, rows):
    monkeypatch.setattr(modeling_uniwetok_head, "MODULATED_ROWS", rows)
    head, scheduler = make_head(), make_sampler(7)  # 8 times
    condition = make_inputs(1, 4)[2]
    sample = head.sample(condition, scheduler, generator=seeded(3))
    made = []
    head.modulation_out.register_forward_hook(lambda module, inputs, output: made.append(len(output)))
    assert sample.equal(head.sample(condition, scheduler, generator=seeded(3)))
    assert made == {1: [1] * 8, 12: [3, 3, 2], 1000: [8]}[rows]
    generator = seeded(3)
    wanted = torch.randn(sample.shape, generator=generator)
    for timestep in scheduler.timesteps:
        prediction = head(wanted, timestep[None], condition)
        wanted = scheduler.advance(prediction, timestep, wanted, generator=generator)
    # Rows that are multiplied together round otherwise on some processors, and eight steps add that up.
    torch.testing.assert_close(sample, wanted, atol=1e-4, rtol=1e-5)


def test_time_embedding_has_cosines_first():
    head = make_head(timestep_embedding_size=4)
    seen = []
    head.time_embed.fc1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    head(*make_inputs(1, 1)[:1], torch.tensor([0.3]), make_inputs(1, 1)[2])
    angles = (300.0, 3.0)  # 1000 t and 1000 t / 100
    wanted = [*map(math.cos, angles), *map(math.sin, angles)]
    torch.testing.assert_close(seen[0], torch.tensor([wanted]), atol=1e-4, rtol=0)


def test_published_head_has_1758464032_parameters():
    config = UniWeTokHeadConfig(num_bits=32, condition_size=5120, hidden_size=5120)
    with torch.device("meta"):
        head = UniWeTokBinaryHead(config)
    assert sum(parameter.numel() for parameter in head.parameters()) == 1_758_464_032


def test_saved_and_loaded(tmp_path):
    head = make_head(num_modulation_layers=2, hidden_act="silu", timestep_shift=2.0)
    head.save_pretrained(tmp_path)
    loaded = UniWeTokBinaryHead.from_pretrained(tmp_path)
    for name in ("num_modulation_layers", "hidden_act", "timestep_shift", "intermediate_size"):
        assert getattr(loaded.config, name) == getattr(head.config, name)
    inputs = make_inputs(2, 4)
    assert torch.equal(loaded(*inputs), head(*inputs))


# --- the loss ---


@pytest.mark.parametrize("num_draws", [1, 3])
def test_loss_by_hand(num_draws):
    head = make_head()
    codes = torch.sign(make_inputs(5, 4)[0])
    condition = make_inputs(5, 4)[2]
    loss = head.compute_loss(codes, condition, generator=seeded(7), num_draws=num_draws)

    generator = seeded(7)
    times = torch.sigmoid(0.8 * torch.randn(5 * num_draws, generator=generator) - 0.8)
    noise = torch.randn(5 * num_draws, 4, BITS, generator=generator)
    terms = []
    for index in range(5 * num_draws):
        t, clean = times[index], codes[index % 5]
        noisy = (1 - t) * noise[index] + t * clean
        prediction = head(noisy[None], t[None], condition[index % 5][None])[0]
        remaining = max(1 - float(t), 0.05)
        velocity, predicted_velocity = (clean - noisy) / remaining, (prediction - noisy) / remaining
        terms.append((velocity - predicted_velocity).square().mean())
    torch.testing.assert_close(loss, torch.stack(terms).mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["logit_normal", "uniform"])
def test_losses_of_patches_with_generators_of_their_own(schedule):
    """A patch gets the same times and noise alone and in any batch."""
    head = make_head(timestep_schedule=schedule)
    codes, condition = torch.sign(make_inputs(3, 4)[0]), make_inputs(3, 4)[2]
    losses, right = head.compute_losses(codes, condition, [seeded(seed) for seed in (5, 6, 7)], num_draws=2)
    assert losses.shape == right.shape == (2, 3)
    for index in range(3):
        alone, _ = head.compute_losses(codes[index][None], condition[index][None], [seeded(5 + index)], num_draws=2)
        torch.testing.assert_close(losses[:, index], alone[:, 0])
    assert len(losses.unique()) == 6
    torch.testing.assert_close(
        head.compute_loss(codes, condition, [seeded(seed) for seed in (5, 6, 7)], num_draws=2), losses.mean()
    )


def test_losses_at_given_times():
    head = make_head()
    codes, condition = torch.sign(make_inputs(5, 4)[0]), make_inputs(5, 4)[2]
    losses, right = head.compute_losses(codes, condition, seeded(7), num_draws=7, timesteps=[0.0, 0.5])
    noise = torch.randn(10, 4, BITS, generator=seeded(7)).view(2, 5, 4, BITS)
    for draw, time in enumerate((0.0, 0.5)):
        noisy = (1 - time) * noise[draw] + time * codes
        error = codes - head(noisy, torch.full((5,), time), condition)
        torch.testing.assert_close(losses[draw], (error / (1 - time)).square().mean((1, 2)), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(right[draw], (error.abs() < 1).float().mean((1, 2)))
    assert 0.2 < right.mean() < 0.8


def test_loss_near_the_end_is_divided_by_no_less_than_005():
    head = make_head(timestep_mean=20.0)  # every t is 1 to float precision
    codes, condition = torch.sign(make_inputs(5, 4)[0]), make_inputs(5, 4)[2]
    loss = head.compute_loss(codes, condition, generator=seeded(7))
    error = codes - head(codes, torch.ones(5), condition)
    torch.testing.assert_close(loss, (error / 0.05).square().mean(), atol=1e-3, rtol=1e-4)


def test_loss_is_float32_in_low_precision():
    head = make_head().bfloat16()
    noisy, _, condition = make_inputs(5, 4)
    loss = head.compute_loss(torch.sign(noisy).bfloat16(), condition.bfloat16(), generator=seeded(7))
    assert loss.dtype == torch.float32 and loss.isfinite()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_logit_normal_times(shift):
    head = make_head(timestep_mean=0.3, timestep_std=0.5, timestep_shift=shift)
    times = head.draw_timesteps(1000, seeded(0), torch.device("cpu"))
    normal = torch.randn(1000, generator=seeded(0))
    wanted = 1 / (1 + torch.exp(-(0.3 + 0.5 * normal)))
    torch.testing.assert_close(times, wanted / (wanted + shift * (1 - wanted)))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_uniform_times(shift):
    head = make_head(timestep_schedule="uniform", timestep_shift=shift)
    times = head.draw_timesteps(4000, seeded(0), torch.device("cpu"))
    even = shift * times / (1 - times + shift * times)  # the inverse of the shift
    assert even.min() >= 0 and even.max() < 1
    for quantile in (0.1, 0.5, 0.9):
        assert abs(even.quantile(quantile) - quantile) < 0.03


# --- the sampler ---


def record_predictions(head: UniWeTokBinaryHead) -> list[torch.Tensor]:
    """Appends the prediction of each call of the network to the returned list."""
    predictions = []
    head.register_forward_hook(lambda module, inputs, output: predictions.append(output))
    return predictions


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_samples_are_the_mixed_prediction_of_the_last_of_n_plus_1_calls(shift, guidance_scale):
    head = make_head()
    predictions, times = record_predictions(head), []
    head.time_embed.register_forward_pre_hook(lambda module, inputs: times.extend(inputs[0].flatten().tolist()))
    condition = make_inputs(6, 4)[2]
    sample = head.sample(condition, make_sampler(5, shift), guidance_scale, seeded(0))
    assert len(predictions) == 5 + 1
    assert times == flow_timesteps(5, shift).tolist()
    assert times[-1] == pytest.approx(0.95)
    if guidance_scale == 1:
        assert sample.shape == (6, 4, BITS)
        assert torch.equal(sample, predictions[-1])
    else:
        assert sample.shape == (3, 4, BITS)
        conditional, unconditional = predictions[-1].chunk(2)
        torch.testing.assert_close(sample, unconditional + 3 * (conditional - unconditional))


def test_sampler_by_hand_with_guidance():
    """Written out from docs/method.md 3.4, with the two networks called apart."""
    head = make_head()
    condition, steps, scale = make_inputs(4, 4)[2], 6, 2.5
    sampled = head.sample(condition, make_sampler(steps), scale, seeded(11))

    generator, grid = seeded(11), flow_timesteps(steps).tolist()
    sample = torch.randn(2, 4, BITS, generator=generator)
    for now, later in zip(grid, [*grid[1:], None], strict=True):
        time = torch.full((2,), now)
        velocities = [(head(sample, time, half) - sample) / max(1 - now, 0.05) for half in condition.chunk(2)]
        velocity = velocities[1] + scale * (velocities[0] - velocities[1])
        if later is None:
            sample = sample + 0.05 * velocity
            break
        drift = velocity + (1 - now) * (now * velocity - sample) / (1 - now)
        noise = torch.randn(2, 4, BITS, generator=generator)
        sample = sample + drift * (later - now) + (2 * (1 - now) * (later - now)) ** 0.5 * noise
    torch.testing.assert_close(sampled, sample, atol=1e-4, rtol=1e-4)


def test_samples_with_picture_guidance_mix_three_predictions():
    head = make_head()
    predictions = record_predictions(head)
    sample = head.sample(make_inputs(6, 4)[2], make_sampler(3), 4.0, seeded(0), image_guidance_scale=3.0)
    assert sample.shape == (2, 4, BITS)
    conditional, picture, unconditional = predictions[-1].chunk(3)
    torch.testing.assert_close(sample, -2 * unconditional - picture + 4 * conditional)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
def test_no_guidance_reads_every_row_as_conditional(guidance_scale):
    head = make_head()
    condition = make_inputs(3, 1)[2]
    sample = head.sample(condition, make_sampler(3), guidance_scale, seeded(0))
    assert torch.equal(sample, head.sample(condition, make_sampler(3), generator=seeded(0)))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_one_generator_a_row_makes_rows_independent_of_the_batch(guidance_scale):
    head = make_head()
    conditional, unconditional = make_inputs(3, 4)[2], make_inputs(3, 4, seed=5)[2]
    guided = guidance_scale > 1

    def sample(rows: slice, generators: list[torch.Generator]) -> torch.Tensor:
        condition = torch.cat([conditional[rows], unconditional[rows]]) if guided else conditional[rows]
        return head.sample(condition, make_sampler(4), guidance_scale, generators)

    together = sample(slice(0, 3), [seeded(20), seeded(21), seeded(22)])
    for row in range(3):
        alone = sample(slice(row, row + 1), [seeded(20 + row)])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_generator_decides_the_sample():
    head = make_head()
    condition = make_inputs(2, 4)[2]
    first, again, other = (head.sample(condition, make_sampler(4), generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_wrong_number_of_generators_is_refused():
    with pytest.raises(ValueError, match="generator"):
        make_head().sample(make_inputs(3, 1)[2], make_sampler(2), generator=[seeded(0)])


def test_sampling_needs_no_gradients():
    assert not make_head().sample(make_inputs(1, 1)[2], make_sampler(2), generator=seeded(0)).requires_grad


def test_every_parameter_learns():
    head = make_head()
    codes, condition = torch.sign(make_inputs(5, 4)[0]), make_inputs(5, 4)[2]
    head.compute_loss(codes, condition, generator=seeded(0)).backward()
    for name, parameter in head.named_parameters():
        # A bias of the keys adds the same to all scores of a query: softmax doesn't see it.
        assert name.endswith("k_proj.bias") or parameter.grad.abs().max() > 0, name


def test_swiglu_by_hand():
    mlp = make_head(intermediate_size=10).layers[0].mlp
    hidden = torch.randn(2, 16, generator=seeded(0))
    wanted = mlp.down_proj(F.silu(mlp.gate_proj(hidden)) * mlp.up_proj(hidden))
    assert mlp.up_proj.out_features == 10
    torch.testing.assert_close(mlp(hidden), wanted)
