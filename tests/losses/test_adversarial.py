import math

import pytest
import torch
from torch.nn import functional as F

from uniwetok_hf.losses.adversarial import LeCam, PatchDiscriminator, discriminator_loss, generator_loss


@pytest.fixture
def discriminator(device):
    torch.manual_seed(0)
    return PatchDiscriminator(base_channels=4, num_norm_groups=2).to(device)


def test_layers_are_the_published_ones():
    with torch.device("meta"):
        discriminator = PatchDiscriminator()
        logits = discriminator(torch.zeros(1, 3, 256, 256))
    weights = {name: tuple(weight.shape) for name, weight in discriminator.named_parameters() if "norms" not in name}
    assert weights == {
        "conv_in.weight": (64, 3, 4, 4),
        "conv_in.bias": (64,),
        "convs.0.weight": (128, 64, 4, 4),
        "convs.1.weight": (256, 128, 4, 4),
        "convs.2.weight": (512, 256, 4, 4),
        "conv_out.weight": (1, 512, 4, 4),
        "conv_out.bias": (1,),
    }
    assert logits.shape == (1, 1, 30, 30)


def test_forward_by_hand(make_pictures):
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(base_channels=2, num_layers=2, num_norm_groups=2)
    w = {name: torch.randn(value.shape) for name, value in discriminator.state_dict().items()}
    discriminator.load_state_dict(w)
    pictures = make_pictures(2, 3, 16, 24).cpu()

    x = F.conv2d(pictures, w["conv_in.weight"], w["conv_in.bias"], stride=2, padding=1)
    for index, stride in enumerate((2, 1)):
        x = torch.where(x > 0, x, 0.2 * x)
        x = F.conv2d(x, w[f"convs.{index}.weight"], stride=stride, padding=1)
        groups = x.unflatten(1, (2, -1))
        variance, mean = torch.var_mean(groups, dim=(2, 3, 4), keepdim=True, correction=0)
        x = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
        x = x * w[f"norms.{index}.weight"][:, None, None] + w[f"norms.{index}.bias"][:, None, None]
    x = F.conv2d(torch.where(x > 0, x, 0.2 * x), w["conv_out.weight"], w["conv_out.bias"], padding=1)
    torch.testing.assert_close(discriminator(pictures), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "size, logits", [((64, 64), (6, 6)), ((24, 24), (1, 1)), ((24, 96), (1, 10)), ((71, 40), (6, 3))]
)
def test_any_size_and_aspect(discriminator, make_pictures, size, logits):
    assert discriminator(make_pictures(2, 3, *size)).shape == (2, 1, *logits)


@pytest.mark.parametrize("num_layers, least", [(1, 6), (3, 24), (4, 48)])
def test_too_small_pictures_are_refused(num_layers, least, make_pictures):
    discriminator = PatchDiscriminator(4, num_layers, 2)
    assert discriminator(make_pictures(1, 3, least, least).cpu()).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match=f"`pixel_values` must have sides of at least {least} pixels.*{least - 1}x99"):
        discriminator(torch.zeros(1, 3, least - 1, 99))


def test_new_weights():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(base_channels=32)
    for name, weight in discriminator.named_parameters():
        if name.endswith("bias"):
            assert not weight.any()
        else:
            assert weight.mean().item() == pytest.approx(1 if "norms" in name else 0, abs=0.01)
            assert weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_a_picture_is_judged_alone(discriminator, make_pictures):
    """No batch statistics, in training either."""
    pictures = make_pictures(3, 3, 32, 32)
    together = discriminator.train()(pictures)
    for index in range(3):
        torch.testing.assert_close(
            discriminator(pictures[index : index + 1])[0], together[index], atol=1e-6, rtol=1e-5
        )


def test_hinge_by_hand():
    real = torch.tensor([2.0, 0.5, -1.0, 1.0]).view(1, 1, 2, 2).requires_grad_()
    fake = torch.tensor([-2.0, 0.5]).view(1, 1, 1, 2).requires_grad_()
    loss = discriminator_loss(real, fake)
    assert loss.item() == 0.5 * ((0 + 0.5 + 2 + 0) / 4 + (0 + 1.5) / 2)
    loss.backward()
    assert real.grad.flatten().tolist() == [0, -0.125, -0.125, 0]
    assert fake.grad.flatten().tolist() == [0, 0.25]


def test_generator_loss_averages_patches_before_the_softplus():
    logits = torch.tensor([[3.0, -1.0], [0.0, -4.0]]).view(2, 1, 1, 2).requires_grad_()
    loss = generator_loss(logits)
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 2, abs=1e-6)
    loss.backward()
    slopes = [-1 / (1 + math.exp(mean)) / 4 for mean in (1.0, -2.0)]  # 2 pictures of 2 patches
    assert logits.grad.flatten().tolist() == pytest.approx([slopes[0]] * 2 + [slopes[1]] * 2, abs=1e-6)


def test_lecam_by_hand():
    lecam = LeCam(decay=0.75)
    real, fake = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2), torch.tensor([-2.0, -1.0, 0.0]).view(3, 1, 1, 1)
    assert lecam(real, fake).item() == pytest.approx((1 + 9) / 2 + (4 + 1 + 0) / 3)  # averages are 0 at first
    lecam.update(real, fake)
    assert (lecam.real_mean.item(), lecam.fake_mean.item()) == (0.5, -0.25)
    # relu(real + 0.25)^2 and relu(0.5 - fake)^2
    assert lecam(real, fake).item() == pytest.approx((1.25**2 + 3.25**2) / 2 + (2.5**2 + 1.5**2 + 0.5**2) / 3)
    assert lecam(-real, 1 - fake).item() == 0  # on the right side of both
    lecam.update(real, fake)
    assert (lecam.real_mean.item(), lecam.fake_mean.item()) == (0.875, -0.4375)
    assert LeCam().decay == 0.999


def test_lecam_is_saved_and_has_no_gradients_of_its_own():
    lecam, logits = LeCam(), torch.ones(1, 1, 2, 2, requires_grad=True)
    penalty = lecam(logits, -logits)
    lecam.update(logits, -logits)
    penalty.backward()  # an update in between does no harm
    assert logits.grad.flatten().tolist() == [1.0] * 4  # 2 (1 - 0) / 4 from either half
    assert not lecam.real_mean.requires_grad and not list(lecam.parameters())
    other = LeCam()
    other.load_state_dict(lecam.state_dict())
    assert torch.equal(other(logits, -logits), lecam(logits, -logits))
    assert other.real_mean.item() == pytest.approx(0.001)


def test_gradients_go_where_they_must(discriminator, make_pictures):
    """The generator's loss reaches the pixels; the discriminator's, given a detached picture, its weights only."""
    sample, pictures = make_pictures(2, 3, 32, 32).requires_grad_(), make_pictures(2, 3, 32, 32, seed=1)
    generator_loss(discriminator.requires_grad_(False)(sample)).backward()
    assert sample.grad.any() and all(weight.grad is None for weight in discriminator.parameters())
    wanted, sample.grad = sample.grad, None
    discriminator.requires_grad_(True)
    discriminator_loss(discriminator(pictures), discriminator(sample.detach())).backward()
    assert sample.grad is None
    # All but the last bias, on which real and fake pictures pull alike here.
    assert all(weight.grad.any() for name, weight in discriminator.named_parameters() if name != "conv_out.bias")
    # One step against the gradient makes the sample look more real.
    with torch.no_grad():
        logits = discriminator(torch.cat([sample, sample - 100 * wanted]))
    assert logits[2:].mean() > logits[:2].mean()


def test_bfloat16_autocast(discriminator, device, make_pictures):
    sample, pictures = make_pictures(2, 3, 32, 32).requires_grad_(), make_pictures(2, 3, 32, 32, seed=1)
    for weight in discriminator.parameters():
        torch.nn.init.normal_(weight, 0.1, 0.2)  # new ones give logits near 0
    results = []
    for enabled in (False, True):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
            logits = discriminator(pictures), discriminator(sample)
            values = torch.stack([discriminator_loss(*logits), generator_loss(logits[1]), LeCam()(*logits)])
        (gradient,) = torch.autograd.grad(values.sum(), sample)
        assert values.dtype == torch.float32 and logits[0].dtype == torch.float32
        results.append((values, gradient))
    (values, gradient), (low_values, low_gradient) = results
    torch.testing.assert_close(low_values, values, rtol=0.03, atol=0.01)
    assert not torch.equal(low_values, values)  # it was on
    assert F.cosine_similarity(gradient.flatten(), low_gradient.flatten(), dim=0) > 0.95


@pytest.mark.parametrize("loss", [discriminator_loss, lambda real, fake: generator_loss(fake), LeCam()])
def test_half_precision_logits_are_taken_as_float32(loss):
    real, fake = torch.randn(2, 2, 1, 5, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(loss(real, fake), loss(real.float(), fake.float()))
    assert loss(real, fake).dtype == torch.float32
