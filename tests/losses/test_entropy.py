import math

import pytest
import torch

from uniwetok_hf.losses.entropy import batch_entropy, code_histogram, entropy_loss, sample_entropy


def codebook(bits):
    """All codes [2^bits, bits] of {-1, +1}; bit j of row r is r >> j & 1."""
    rows = torch.arange(2**bits)[:, None] >> torch.arange(bits) & 1
    return rows.double() * 2 - 1


def enumerated(latents, bits, temperature, eps=1e-5):
    """Both entropies as docs/method.md 2.4 defines them: a softmax over all codes, in float64."""
    tokens = latents.double().movedim(1, -1).reshape(-1, bits)
    log_p = torch.log_softmax(2 * tokens @ codebook(bits).T / temperature, dim=-1)
    mean = log_p.exp().mean(0)
    return -(log_p.exp() * log_p).sum(-1).mean(), -(mean * torch.log(mean + eps)).sum()


def random_latents(bits, scale, seed=0, groups=3):
    return torch.randn(2, groups * bits, 3, 5, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("scale", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 0.0), (0.0, 2.0)])
def test_closed_form_is_the_enumeration(bits, scale, weights, device):
    values = random_latents(bits, scale)
    latents = values.to(device, copy=True).requires_grad_()
    result = entropy_loss(latents, bits, 0.01, *weights)
    result.loss.backward()

    reference = values.double().requires_grad_()
    sample, batch = enumerated(reference, bits, 0.01)
    loss = weights[0] * sample - weights[1] * batch
    loss.backward()

    expected = (loss, sample, batch)
    for value, wanted in zip(result, expected, strict=True):
        assert value.shape == () and value.dtype == torch.float32
        assert value.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-6)
    largest = reference.grad.abs().max().item()
    torch.testing.assert_close(latents.grad.double().cpu(), reference.grad, rtol=0, atol=5e-5 * largest)


def test_temperature_divides_the_latents():
    latents = random_latents(4, 0.05)
    for value, wanted in zip(entropy_loss(latents, 4, 0.05), entropy_loss(latents / 5, 4, 0.01), strict=True):
        assert value.item() == pytest.approx(wanted.item(), rel=1e-5)
    sample, batch = enumerated(latents, 4, 0.05)
    assert entropy_loss(latents, 4, 0.05).sample_entropy.item() == pytest.approx(sample.item(), rel=1e-5)
    assert entropy_loss(latents, 4, 0.05).batch_entropy.item() == pytest.approx(batch.item(), rel=1e-5)


def test_defaults_are_groups_of_8_at_0_01():
    latents = random_latents(8, 0.01)
    assert torch.equal(torch.stack(entropy_loss(latents)), torch.stack(entropy_loss(latents, 8, 0.01, 1.0, 1.0)))


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_histogram_counts_codes_by_their_index(bits):
    indices = torch.arange(2**bits).repeat_interleave(torch.arange(2**bits) % 3 + 1)
    counts = (torch.arange(2**bits) % 3 + 1).float()
    logits = codebook(bits)[indices].float() * 100  # certain bits
    torch.testing.assert_close(code_histogram(logits), counts / counts.sum())


def test_histogram_of_one_token_is_its_distribution():
    logits = torch.tensor([[0.3, -1.2, 2.0]])
    probabilities = torch.sigmoid(logits[0])
    for row, probability in enumerate(code_histogram(logits)):
        chosen = [p if row >> j & 1 else 1 - p for j, p in enumerate(probabilities)]
        assert probability.item() == pytest.approx(math.prod(p.item() for p in chosen), rel=1e-5)


def test_groups_are_pooled_in_one_histogram():
    """Every group uses one code only, each another one: pooled, they use 16 codes evenly."""
    codes = codebook(4).flatten()[None, :, None, None].float()
    result = entropy_loss(codes.expand(2, -1, 3, 3), bits_per_group=4)
    assert result.batch_entropy.item() == pytest.approx(math.log(16), abs=1e-3)
    assert result.sample_entropy.item() == pytest.approx(0, abs=1e-6)


def test_largest_entropies():
    result = entropy_loss(torch.zeros(1, 16, 2, 2))
    assert result.sample_entropy.item() == pytest.approx(8 * math.log(2), rel=1e-6)
    assert result.batch_entropy.item() == pytest.approx(-math.log(1 / 256 + 1e-5), rel=1e-5)


def test_eps_sits_in_the_logarithm_only():
    histogram = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert batch_entropy(histogram).item() == pytest.approx(-math.log1p(1e-5), abs=2e-7)
    assert batch_entropy(histogram, eps=0.5).item() == pytest.approx(-math.log(1.5), rel=1e-6)


@pytest.mark.parametrize("value", [1.0, -1.0, 1e3, -1e5, 1e30])
def test_extreme_latents_are_finite(value):
    latents = torch.full((1, 16, 2, 2), value)
    latents[:, ::3] *= -1
    latents.requires_grad_()
    result = entropy_loss(latents)
    result.loss.backward()
    assert all(entropy.isfinite() for entropy in result)
    assert result.sample_entropy.item() == pytest.approx(0, abs=1e-6)
    assert latents.grad.isfinite().all()


def test_certain_and_undecided_bits_side_by_side():
    logits = torch.tensor([[0.0, 1e6, -1e6, 0.0]], requires_grad=True)
    entropy = sample_entropy(logits)
    entropy.backward()
    assert entropy.item() == pytest.approx(2 * math.log(2), rel=1e-6)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_latents_are_computed_in_float32(dtype, device):
    latents = random_latents(8, 0.02).to(device, dtype).requires_grad_()
    single = latents.detach().float().requires_grad_()
    for tensor in (latents, single):
        entropy_loss(tensor).loss.backward()
    assert torch.equal(torch.stack(entropy_loss(latents)), torch.stack(entropy_loss(single)))
    assert latents.grad.dtype == dtype
    torch.testing.assert_close(latents.grad, single.grad.to(dtype))


def test_autocast_does_not_lower_the_precision(device):
    latents = random_latents(8, 0.02).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        inside = entropy_loss(latents)
    assert torch.equal(torch.stack(inside), torch.stack(entropy_loss(latents)))


def test_order_of_tokens_does_not_matter_but_bits_of_a_group_stay_together():
    latents = random_latents(4, 0.01)
    batch = entropy_loss(latents, 4).batch_entropy
    regrouped = latents.unflatten(1, (3, 4)).flip(1).flatten(1, 2).flip(0, 3)
    assert entropy_loss(regrouped, 4).batch_entropy.item() == pytest.approx(batch.item(), rel=1e-5)
    mixed = latents.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
    assert abs(entropy_loss(mixed, 4).batch_entropy - batch) > 1e-4


@pytest.mark.parametrize("shape", [(2, 12, 3, 3), (2, 4, 3, 3), (2, 16, 9), (16, 3, 3)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="`latents` must be .* multiple of `bits_per_group`=8"):
        entropy_loss(torch.zeros(shape), 8)
