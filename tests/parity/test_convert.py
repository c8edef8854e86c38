"""Converted image tokenizers against the golden vectors (tests/fixtures/golden/README.md)."""

import pytest
import torch
from safetensors.torch import load_file

from uniwetok_hf import UniWeTokModel, convert_checkpoint


@pytest.mark.parametrize("max_shard_size", ["5GB", "300KB"])
@pytest.mark.parametrize("name", ["tokenizer_uniwetok", "tokenizer_bitdance"])
@torch.no_grad()
def test_converted_tokenizer(fixtures, tmp_path, device, name, max_shard_size):
    folder = convert_checkpoint(fixtures / "golden" / name, tmp_path / "out", max_shard_size=max_shard_size)
    model = UniWeTokModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    golden = {
        key: tensor.to(device) for key, tensor in load_file(fixtures / "golden" / name / "golden.safetensors").items()
    }

    encoded = model.encode(golden["pixel_values"])
    torch.testing.assert_close(encoded.latents, golden["pre_quant"], atol=1e-4, rtol=0)
    decided = golden["pre_quant"].abs() > 1e-4
    assert decided.float().mean() > 0.99
    assert torch.equal(encoded.codes[decided], golden["quant"][decided])

    # The convolutional tokenizer reads no noise, and takes no notice of it.
    sample = model.decode(golden["quant"], noise=golden["noise"]).sample
    torch.testing.assert_close(sample, golden["reconstruction"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_wrong_heads_compute_something_else(fixtures, tmp_path, device):
    """The file alone does not tell the heads: 16, the default, loads but is wrong for this one."""
    source = fixtures / "golden" / "tokenizer_uniwetok"
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "ae.safetensors").write_bytes((source / "ae.safetensors").read_bytes())
    golden = load_file(source / "golden.safetensors")
    errors = {}
    for heads in (4, 16):
        folder = convert_checkpoint(tmp_path / "alone", tmp_path / str(heads), num_attention_heads=heads)
        model = UniWeTokModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
        latents = model.encode(golden["pixel_values"].to(device)).latents.cpu()
        errors[heads] = (latents - golden["pre_quant"]).abs().max()
    assert errors[4] < 1e-4 < errors[16]
