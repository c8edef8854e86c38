import torch

from uniwetok_hf.losses.commitment import commitment_loss


def test_value_and_gradient_by_hand():
    latents = torch.tensor([0.5, -0.5, 0.0, 1.0]).view(1, 4, 1, 1).requires_grad_()
    loss = commitment_loss(latents)
    assert loss.item() == (0.25 + 0.25 + 1 + 0) / 4  # 0 belongs to -1
    loss.backward()
    assert latents.grad.flatten().tolist() == [-0.25, 0.25, 0.5, 0.0]  # the codes stand still


def test_float32_under_autocast(device, make_pictures):
    latents = make_pictures(2, 16, 3, 3).bfloat16()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = commitment_loss(latents)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, commitment_loss(latents.float()))
