# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Linear layers that are fast with few rows on CPUs.

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


class UniWeTokLinear(nn.Linear):
    """`nn.Linear`, whose weights come first in the product with few rows in float32 on a CPU."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self._takes_columns(input):
            return super().forward(input)
        columns = input.reshape(-1, self.in_features).t()  # [in, rows]
        bias, weight = self.bias, self.weight
        output = weight @ columns if bias is None else torch.addmm(bias[:, None], weight, columns)  # [out, rows]
        return output.t().contiguous().view(*input.shape[:-1], self.out_features)

    def _takes_columns(self, input: torch.Tensor) -> bool:
        if torch.compiler.is_compiling():  # which has products of its own
            return False
        weight = self.weight
        is_plain = type(weight) is nn.Parameter and weight.dtype is torch.float32  # quantized ones are other classes
        if not is_plain or weight.device.type != "cpu" or input.dtype is not torch.float32:
            return False
        return FEWEST * self.in_features <= input.numel() <= MOST * self.in_features


def use_fast_linears(model: nn.Module) -> None:
    """Makes every `nn.Linear` of a model a [`UniWeTokLinear`], those inside a library's classes as well. Names and
    weights stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = UniWeTokLinear


__all__ = ["UniWeTokLinear", "use_fast_linears"]
