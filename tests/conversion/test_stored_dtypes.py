# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Checkpoints stored in any dtype that safetensors knows: what comes out loads, or is refused by name."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conversion.published import GOLDEN, edit_tensors
from uniwetok_hf import UniWeTokForCausalLM, UniWeTokModel
from uniwetok_hf.conversion import ConversionError, convert_checkpoint
from uniwetok_hf.conversion.tensors import DTYPES


SOURCE = GOLDEN / "tokenizer_uniwetok" / "ae.safetensors"
KEPT = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SMALL_FLOATS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


def store(file, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The golden tokenizer with its matrices in `dtype`, as the checkpoints of a community are."""
    tensors = {name: t.to(dtype) if t.ndim > 1 else t for name, t in load_file(SOURCE).items()}
    save_file(tensors, file)
    return tensors


@pytest.mark.parametrize("dtype", [*KEPT, *SMALL_FLOATS], ids=str)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_floats_load(tmp_path, dtype, suffix):
    file = tmp_path / f"ae{suffix}"
    stored = store(tmp_path / "ae.safetensors", dtype)
    if suffix == ".pt":
        torch.save({"state_dict": stored}, file)
    convert_checkpoint(file, tmp_path / "out", num_attention_heads=4)
    written = load_file(tmp_path / "out" / "model.safetensors")
    expected = dtype if dtype in KEPT else torch.bfloat16
    assert {t.dtype for t in written.values() if t.ndim > 1} == {expected}
    model = UniWeTokModel.from_pretrained(tmp_path / "out")
    assert model.dtype == expected
    name = "encoder.conv_in.weight"
    values = stored[name].to(expected)
    assert torch.equal(model.state_dict()[name], values) and values.float().abs().sum() > 0
    codes = model.encode(torch.zeros(1, 3, 32, 32, dtype=expected)).codes
    assert codes.dtype == expected


def test_small_floats_in_another_dtype(tmp_path):
    store(tmp_path / "ae.safetensors", torch.float8_e4m3fn)
    convert_checkpoint(tmp_path / "ae.safetensors", tmp_path / "out", num_attention_heads=4, dtype="float16")
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float16}


def test_small_floats_of_a_text_to_image_model(copy_golden, tmp_path):
    src = copy_golden("t2i_4x")
    for file in src.rglob("*.safetensors"):
        tensors = load_file(file)
        save_file({n: t.to(torch.float8_e4m3fn) if t.ndim > 1 else t for n, t in tensors.items()}, file)
    convert_checkpoint(src, tmp_path / "out")
    model = UniWeTokForCausalLM.from_pretrained(tmp_path / "out" / "mllm")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", sorted(name for name, dtype in DTYPES.items() if not dtype.is_floating_point))
def test_what_is_no_float_is_refused(tmp_path, name):
    store(tmp_path / "ae.safetensors", torch.float32)
    whole = load_file(SOURCE)["encoder.conv_in.weight"]
    edit_tensors(tmp_path / "ae.safetensors", **{"encoder.conv_in.weight": torch.ones(whole.shape).to(DTYPES[name])})
    kind = str(DTYPES[name]).removeprefix("torch.")
    with pytest.raises(ConversionError, match=f"weights that are no floats: encoder.conv_in.weight is {kind}"):
        convert_checkpoint(tmp_path / "ae.safetensors", tmp_path / "out", num_attention_heads=4)
    assert not (tmp_path / "out").exists()


def test_scales_of_quantized_weights_are_named(tmp_path):
    store(tmp_path / "ae.safetensors", torch.float8_e4m3fn)
    edit_tensors(tmp_path / "ae.safetensors", **{"encoder.conv_in.weight_scale": torch.ones(())})
    with pytest.raises(ConversionError, match="unknown tensors encoder.conv_in.weight_scale"):
        convert_checkpoint(tmp_path / "ae.safetensors", tmp_path / "out", num_attention_heads=4)


@pytest.mark.parametrize(("dtype", "bits"), [("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6), ("F9", 8)])
def test_other_dtypes_are_named(tmp_path, dtype, bits):
    header = {"encoder.conv_in.weight": {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    (tmp_path / "ae.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(bits))
    with pytest.raises(ConversionError, match=dtype):
        convert_checkpoint(tmp_path / "ae.safetensors", tmp_path / "out", num_attention_heads=4)
