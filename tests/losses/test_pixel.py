import pytest
import torch

from uniwetok_hf.losses.pixel import l1_loss, l2_loss


SAMPLE = torch.tensor([0.5, -1.0, 0.0, 1.0]).view(1, 1, 2, 2)
PIXELS = torch.tensor([0.0, 1.0, 0.0, -0.5]).view(1, 1, 2, 2)


def test_values_and_gradients_by_hand():
    sample, pixels = SAMPLE.clone().requires_grad_(), PIXELS.clone()
    assert l1_loss(sample, pixels).item() == (0.5 + 2 + 0 + 1.5) / 4
    assert l2_loss(sample, pixels).item() == (0.25 + 4 + 0 + 2.25) / 4
    l2_loss(sample, pixels).backward()
    assert sample.grad.flatten().tolist() == [0.25, -1.0, 0.0, 0.75]


@pytest.mark.parametrize("loss", [l1_loss, l2_loss])
def test_float32_whatever_comes_in(loss, device, make_pictures):
    sample, pixels = make_pictures(2, 3, 8, 8).bfloat16(), make_pictures(2, 3, 8, 8, seed=1).bfloat16()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        value = loss(sample, pixels)
    assert value.dtype == torch.float32 and value.shape == ()
    assert torch.equal(value, loss(sample.float(), pixels.float()))


@pytest.mark.parametrize("loss", [l1_loss, l2_loss])
def test_pictures_are_not_broadcast(loss):
    with pytest.raises(ValueError, match=r"`sample` must be shaped like `pixel_values`, \(2, 3, 8, 8\)"):
        loss(torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 8))
