"""The quantizer and its entropy loss against the golden vectors (tests/fixtures/golden/README.md)."""

import pytest
import torch
from safetensors.torch import load_file

from uniwetok_hf.losses.entropy import entropy_loss
from uniwetok_hf.modeling.codes_uniwetok import binarize, pack_codes, unpack_codes


@pytest.fixture
def golden(fixtures, device):
    tensors = load_file(fixtures / "golden" / "quantizer.safetensors")
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def test_entropies_and_gradient(golden):
    latents = golden["latents"].requires_grad_()
    result = entropy_loss(latents, bits_per_group=8, temperature=0.01)
    result.loss.backward()

    for name in ("sample_entropy", "batch_entropy", "loss"):
        torch.testing.assert_close(getattr(result, name), golden[name], rtol=1e-5, atol=0)
    largest = golden["grad"].abs().max()
    torch.testing.assert_close(latents.grad, golden["grad"], rtol=0, atol=1e-5 * largest.item())


def test_group_index_is_the_packed_byte(golden):
    packed = pack_codes(binarize(golden["latents"]))
    assert torch.equal(packed.flatten(1, 2).long(), golden["group_index"])


def test_unpacked_group_index_is_the_codes(golden):
    packed = golden["group_index"].to(torch.uint8).unflatten(1, golden["latents"].shape[2:])
    assert torch.equal(unpack_codes(packed), binarize(golden["latents"]))


def test_first_rows_of_the_codebook():
    rows = unpack_codes(torch.arange(3, dtype=torch.uint8).reshape(1, 3, 1, 1))[0, :, :, 0].T.tolist()
    assert rows == [[-1] * 8, [1] + [-1] * 7, [-1, 1] + [-1] * 6]
