import pytest
import torch

from uniwetok_hf.losses.prior import ClassToImagePrior, GenerativePrior
from uniwetok_hf.modeling.modeling_uniwetok_head import UniWeTokBinaryHead


@pytest.fixture
def make_prior(device):
    """A tiny prior whose every parameter is random: a new one predicts 0 whatever it is told."""

    def make(is_new=False, **sizes):
        torch.manual_seed(0)
        sizes = {"num_bits": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2} | sizes
        prior = GenerativePrior(**sizes)
        if not is_new:
            for parameter in prior.parameters():
                torch.nn.init.normal_(parameter, std=0.5)
        return prior.to(device)

    return make


def make_codes(*shape, device, seed=0):
    """Latents that want gradients, and codes of them by the straight-through estimator."""
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device).requires_grad_()
    return latents, latents + (torch.where(latents > 0, 1.0, -1.0) - latents).detach()


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_default_size_is_the_papers():
    prior = GenerativePrior(num_bits=128)
    count = sum(parameter.numel() for parameter in prior.parameters() if parameter.requires_grad)
    assert count == 8_566_912
    assert f"{count:,}" in GenerativePrior.__doc__


def test_new_prior_expects_nothing(make_prior, device):
    """It predicts 0, so every bit has a squared error of 1."""
    _, codes = make_codes(2, 8, 2, 3, device=device)
    assert make_prior(is_new=True)(codes, generators(0, 1)).item() == pytest.approx(1, abs=1e-6)


def test_value_by_hand(make_prior, device):
    """Equation 7, token by token, picture by picture, with the times and noise that the generators give."""
    prior = make_prior()
    _, codes = make_codes(2, 8, 2, 3, device=device)
    errors = []
    for picture, seed in zip(codes, (5, 6), strict=True):
        generator = torch.Generator().manual_seed(seed)
        times = torch.rand(1, 6, generator=generator)[0].to(device)
        noise = torch.randn(1, 6, 8, generator=generator)[0].to(device)
        conditions = prior.conditions(picture[None])[0]
        for index in range(6):
            token = picture[:, index // 3, index % 3]  # row-major
            time = times[index]
            noisy = (1 - time) * noise[index] + time * token
            prediction = prior.head(noisy[None, None], time[None], conditions[None, index : index + 1])
            errors.append((prediction[0, 0] - token).square())
    expected = torch.cat(errors).mean()
    torch.testing.assert_close(prior(codes, generators(5, 6)), expected)


def test_condition_of_a_token_is_of_those_before_it(make_prior, device):
    prior = make_prior()
    latents, codes = make_codes(1, 8, 2, 3, device=device)
    conditions = prior.conditions(codes)[0]  # [6, hidden size]
    for index in range(6):
        (gradient,) = torch.autograd.grad(conditions[index].sum(), latents, retain_graph=True)
        seen = gradient[0].abs().sum(0).flatten() > 0
        assert seen.tolist() == [place < index for place in range(6)]


def test_first_condition_is_the_learned_querys(make_prior, device):
    prior = make_prior()
    query = prior.transformer.get_input_embeddings().weight
    assert query.shape == (1, 16)
    _, codes = make_codes(1, 8, 2, 2, device=device)
    (gradient,) = torch.autograd.grad(prior.conditions(codes)[0, 0].square().sum(), query)
    assert gradient.abs().min() > 0


def test_sinusoids_of_a_token_are_added_to_it_and_to_what_predicts_it(make_prior, device):
    """Only they tell two tokens of one row apart from the same two in one column at equal places of the sequence."""
    prior = make_prior()
    _, row = make_codes(1, 8, 1, 2, device=device)
    column = row.transpose(2, 3)
    difference = prior.conditions(column) - prior.conditions(row)
    # The first is read from the query alone, so only what is added after the transformer differs: the column's first
    # token and the row's lie both at (0, 0).
    torch.testing.assert_close(difference[0, 0], torch.zeros_like(difference[0, 0]))
    captured = []
    handle = prior.transformer.register_forward_hook(
        lambda module, args, kwargs, output: captured.append((kwargs["inputs_embeds"], output.last_hidden_state)),
        with_kwargs=True,
    )
    _, codes = make_codes(1, 8, 2, 2, device=device)
    conditions = prior.conditions(codes)
    handle.remove()
    inputs, outputs = captured[0]
    angles = 10000.0 ** -(torch.arange(4.0, device=device) / 4)
    axis = [torch.cat([(place * angles).sin(), (place * angles).cos()]) for place in (0, 1)]
    positions = torch.stack([torch.cat([axis[x], axis[y]]) for y, x in ((0, 0), (0, 1), (1, 0), (1, 1))])
    torch.testing.assert_close(conditions[0] - outputs[0], positions, atol=1e-5, rtol=0)
    embedded = prior.projector(codes[0].flatten(1).T)
    torch.testing.assert_close(inputs[0, 1:] - embedded[:-1], positions[:-1], atol=1e-5, rtol=0)


def test_gradient_reaches_the_encoder_as_input_and_as_target(make_prior, device):
    prior = make_prior()
    latents, codes = make_codes(2, 8, 2, 2, device=device)
    prior(codes, generators(0, 1)).backward()
    assert latents.grad.abs().sum((0, 2, 3)).min() > 0

    # As target alone: a prior that predicts 0 has the gradient 2 (token - 0) / N.
    latents.grad = None
    _, codes = latents, latents + (torch.where(latents > 0, 1.0, -1.0) - latents).detach()
    make_prior(is_new=True)(codes, generators(0, 1)).backward()
    torch.testing.assert_close(latents.grad, 2 * codes.detach() / codes.numel())

    # As what is read alone: the first token is a condition of the last, the conditions of the last reach it.
    (gradient,) = torch.autograd.grad(prior.conditions(codes)[:, -1].sum(), latents)
    assert gradient[:, :, 0, 0].abs().min() > 0


@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (3, 2)])
def test_every_parameter_that_learns_has_a_gradient_on_any_grid(make_prior, device, grid):
    """Under DDP one without would stop the training, also in the bucket of the smallest pictures."""
    prior = make_prior(num_head_layers=2)
    latents, codes = make_codes(2, 8, *grid, device=device)
    prior(codes, generators(0, 1)).backward()
    without = [name for name, p in prior.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    frozen = {name.split(".")[-2] for name, p in prior.named_parameters() if not p.requires_grad}
    assert frozen == {"q_proj", "k_proj"}
    assert latents.grad.isfinite().all()
    if grid != (1, 1):
        assert all(p.grad.abs().sum() > 0 for n, p in prior.named_parameters() if p.requires_grad)


def test_head_is_the_unified_models_with_uniform_times(make_prior):
    head = make_prior().head
    assert isinstance(head, UniWeTokBinaryHead)
    assert head.config.timestep_schedule == "uniform"


def test_a_picture_is_independent_of_its_batch(make_prior, device):
    prior = make_prior()
    _, codes = make_codes(3, 8, 2, 2, device=device)
    together = prior(codes, generators(7, 8, 9))
    alone = [prior(codes[i : i + 1], generators(7 + i)) for i in range(3)]
    torch.testing.assert_close(together, torch.stack(alone).mean())
    assert alone[0] != prior(codes[:1], generators(8))


def test_no_global_randomness_with_generators(make_prior, device):
    prior = make_prior()
    _, codes = make_codes(2, 8, 2, 2, device=device)
    state = torch.get_rng_state()
    prior(codes, generators(0, 1))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_list_of_another_length_is_refused(make_prior, device):
    _, codes = make_codes(2, 8, 2, 2, device=device)
    with pytest.raises(ValueError, match="`generator` is a list of 3, but 2 pictures"):
        make_prior()(codes, generators(0, 1, 2))


def test_under_autocast_the_loss_is_float32(make_prior, device):
    prior = make_prior()
    latents, codes = make_codes(2, 8, 2, 2, device=device)
    single = prior(codes, generators(0, 1))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        half = prior(codes.bfloat16(), generators(0, 1))
    assert half.dtype == torch.float32
    assert half.item() != single.item()  # the networks did run in bfloat16
    torch.testing.assert_close(half, single, atol=0.05, rtol=0.05)
    half.backward()
    assert latents.grad.isfinite().all() and latents.grad.abs().sum() > 0


def test_it_learns_what_can_be_predicted(make_prior, device):
    """Eight tokens that are all alike: but for the first they can be told from those before. Nobody who sees only the
    noisy token itself does better than its posterior mean, tanh(t z / (1 - t)^2)."""
    generator = torch.Generator().manual_seed(0)
    time, noise = torch.rand(100_000, generator=generator), torch.randn(100_000, generator=generator)
    alone = (1 - torch.tanh(time * ((1 - time) * noise + time) / (1 - time) ** 2)).square().mean().item()
    assert alone == pytest.approx(0.46, abs=0.01)

    prior = make_prior(is_new=True, hidden_size=32, num_head_layers=1)
    optimizer = torch.optim.AdamW([p for p in prior.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(50):
        codes = torch.randn(16, 8, 1, 1, generator=generator).sign().expand(-1, -1, -1, 8).to(device)
        loss = prior(codes, generator)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.75 * alone


@pytest.mark.parametrize("sizes", [{"hidden_size": 18, "num_attention_heads": 1}, {"num_attention_heads": 16}])
def test_sizes_that_do_not_divide_are_refused(make_prior, sizes):
    with pytest.raises(ValueError, match="`hidden_size` must be a multiple"):
        make_prior(**sizes)


# --- with the architecture of the class-to-image model ---


def class_to_image_prior(device, is_new=False) -> ClassToImagePrior:
    torch.manual_seed(0)
    prior = ClassToImagePrior(8, 3, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    if not is_new:
        for parameter in prior.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return prior.to(device)


def test_default_size_of_the_class_to_image_prior():
    count = sum(parameter.numel() for parameter in ClassToImagePrior(128, 8).parameters())
    assert count == 8_516_480 and f"{count:,}" in ClassToImagePrior.__doc__


def test_a_new_class_to_image_prior_expects_nothing(device):
    _, codes = make_codes(2, 8, 3, 3, device=device)
    assert class_to_image_prior(device, is_new=True)(codes, generators(0, 1)).item() == pytest.approx(1, abs=1e-6)


def test_the_class_to_image_prior_reads_what_comes_before(device):
    prior, (_, codes) = class_to_image_prior(device), make_codes(1, 8, 3, 3, device=device)
    before = prior.conditions(codes)
    for index in range(9):
        changed = codes.clone()
        changed[:, :, index // 3, index % 3] *= -1
        moved = (prior.conditions(changed) != before).any(2)[0].tolist()
        assert moved == [False] * (index + 1) + [True] * (8 - index)


def test_the_encoder_and_all_of_the_class_to_image_prior_learn(device):
    prior, (latents, codes) = class_to_image_prior(device), make_codes(2, 8, 3, 3, device=device)
    prior(codes, generators(0, 1)).backward()
    assert latents.grad.any(dim=1).all()
    assert [name for name, parameter in prior.named_parameters() if parameter.grad is None] == []


def test_the_class_to_image_prior_knows_one_size(device):
    with pytest.raises(ValueError, match=r"`codes` must be \[B, 8, 3, 3\], got \[1, 8, 2, 3\]"):
        class_to_image_prior(device)(make_codes(1, 8, 2, 3, device=device)[1])
