# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Linear layers that are faster on CPUs.

A patch is generated with one row for each of its tokens, twice with guidance, so that what takes the time is reading
the weights. PyTorch's product of two to five rows with float32 weights reads them at a quarter to a half of the
memory's speed; the product of the weights with the rows as columns reads them at all of it. Both are the same sums,
in another order.
"""

import torch
from torch import nn


# Measured with torch 2.13 on an AMD EPYC (`benchmarks/linear.py`): 1.1 to 4.8 times as fast with 2 to 4 rows, 1 to 1.9
# times with 5. One row is a product of its own kind, and with 7 to 14 the usual order is faster.
FEWEST, MOST = 2, 5
NUM_SAMPLED = 64  # values by which a changed weight is told


def _is_plain(weight: torch.Tensor) -> bool:
    return type(weight) is nn.Parameter and weight.dtype is torch.float32 and weight.device.type == "cpu"


class _PackedWeight:
    """A weight in the order of oneDNN. It is of no use once the weight has changed, and not copied with its layer."""

    def __init__(self, weight: torch.Tensor, rows: int):
        self.source, self.sample = self._source(weight), self._sample(weight).clone()
        self.pack(weight.detach(), rows)

    def pack(self, weight: torch.Tensor, rows: int) -> None:
        self.values = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def linear(self, input: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(input, self.values, bias, "none", [], "")

    def is_of(self, weight: torch.Tensor) -> bool:
        return self.source == self._source(weight) and torch.equal(self.sample, self._sample(weight))

    def _source(self, weight: torch.Tensor) -> tuple[int, int]:
        return weight.data_ptr(), weight._version

    def _sample(self, weight: torch.Tensor) -> torch.Tensor:
        """Some values of it: what peft writes through `.data` does not count as a version."""
        return weight.detach().view(-1)[:: max(1, weight.numel() // NUM_SAMPLED)]

    def __deepcopy__(self, memo) -> None:
        return None

    def __reduce__(self):
        return (type(None), ())


class _Int8Weight(_PackedWeight):
    """A weight as integers, with a scale for each output; inputs become integers row by row."""

    def pack(self, weight: torch.Tensor, rows: int) -> None:
        self.values, scales = _as_int8(weight)  # [out, in], [out, 1]
        self.scales = scales[:, 0]

    def linear(self, input: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows, scales = _as_int8(input.reshape(-1, input.shape[-1]))
        output = torch._int_mm(rows, self.values.t()).mul(scales)  # [rows, out]
        output = output.mul_(self.scales) if bias is None else torch.addcmul(bias, output, self.scales)
        return output.view(*input.shape[:-1], len(self.values))


def _as_int8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row as integers of -127 to 127, and the scale of each, [rows, 1]."""
    scales = rows.abs().amax(1, keepdim=True).div_(127).clamp_min_(torch.finfo(rows.dtype).tiny)
    return (rows / scales).round_().to(torch.int8), scales


class UniWeTokLinear(nn.Linear):
    """`nn.Linear` that is faster in float32 on a CPU: with few rows its weights come first in the product, with more
    it takes the packed ones of [`pack_linears`]."""

    _packed: _PackedWeight | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self._is_fast(input):
            return super().forward(input)
        bias, weight, rows = self.bias, self.weight, input.numel() // self.in_features
        if FEWEST <= rows <= MOST:
            columns = input.reshape(rows, -1).t()  # [in, rows]
            output = weight @ columns if bias is None else torch.addmm(bias[:, None], weight, columns)  # [out, rows]
            return output.t().contiguous().view(*input.shape[:-1], self.out_features)
        if rows > MOST and self._packed and self._packed.is_of(weight) and not torch.is_grad_enabled():
            return self._packed.linear(input, bias)
        return super().forward(input)

    def _is_fast(self, input: torch.Tensor) -> bool:
        """Not where a compiler has products of its own, under autocast, and with the classes of quantized weights."""
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return False
        return _is_plain(self.weight) and input.dtype is torch.float32 and input.device.type == "cpu"


def use_fast_linears(model: nn.Module) -> None:
    """Makes every `nn.Linear` of a model a [`UniWeTokLinear`], those inside a library's classes as well. Names and
    weights stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = UniWeTokLinear


def pack_linears(model: nn.Module, rows: int = 32, dtype: torch.dtype = torch.float32) -> None:
    """Keeps the weights of a model's linear layers a second time, in a form in which products of more than five rows
    are faster, without gradients. In float32 that is the order in which they are read best: such products take half to
    four fifths of the time, with the same sums. In int8 weights and inputs become integers: products take less, and
    some of the bits that are generated change. A layer whose weight changes afterwards, as an adapter is fused into
    it, takes the usual way again. Pack again where single values are written through `.data`, which nothing tells.

    Args:
        model: a [`UniWeTokForCausalLM`], a [`UniWeTokClassToImageModel`], or a part of one, in float32 on a CPU.
        rows: of the products that are to be fast, in float32: tokens of a patch x pictures at once, twice with
            guidance.
        dtype: torch.float32, for as much memory as the layers have, or torch.int8, for a quarter of it.

    Raises:
        ValueError: when nothing in the model can be packed.
    """
    if rows < 1:
        raise ValueError(f"`rows` must be 1 or more, got {rows}.")
    kinds = {torch.float32: _PackedWeight, torch.int8: _Int8Weight}
    if dtype not in kinds:
        raise ValueError(f"`dtype` must be torch.float32 or torch.int8, got {dtype}.")
    layers = [module for module in model.modules() if isinstance(module, UniWeTokLinear)]
    layers = [layer for layer in layers if _is_plain(layer.weight) and layer.weight.is_contiguous()]
    if not layers or not torch.backends.mkldnn.is_available():
        raise ValueError(
            "`model` has no linear layers that can be packed: they must be those of a language model or "
            "class-to-image model, in float32 on a CPU, and PyTorch must have oneDNN."
        )
    for layer in layers:
        layer._packed = kinds[dtype](layer.weight, rows)


__all__ = ["UniWeTokLinear", "pack_linears", "use_fast_linears"]
