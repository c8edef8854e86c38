# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Whether a model still computes what it computed: a digest of what can change under a key-value cache.

Reading all weights would take as long as generating. Every in-place operation of torch counts up the version of its
tensor (training steps, `load_state_dict`); what writes past that (`tensor.data`, as `peft` does when it merges) is
seen in a sample of each tensor's values.
"""

import hashlib

import torch
from torch import nn


NUM_SAMPLES = 16  # values of a tensor
# Attributes of the layers of `peft` that decide what an adapter adds.
ADAPTER_STATE = ("active_adapters", "merged_adapters", "disable_adapters", "scaling")


@torch.no_grad()
def state_digest(model: nn.Module) -> str:
    """A digest of the dtypes, devices, versions and sampled values of a model's weights, of whether it trains, and of
    which adapters are active, merged and with what scale."""
    digest = hashlib.blake2b(digest_size=16)
    samples: dict[torch.device, list[torch.Tensor]] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        version = 0 if tensor.is_inference() else tensor._version
        digest.update(repr((name, tuple(tensor.shape), tensor.dtype, tensor.device, version)).encode())
        is_plain = type(tensor) in (torch.Tensor, nn.Parameter)  # quantized weights are classes of their own
        if is_plain and tensor.device.type != "meta" and tensor.numel() > 0 and not tensor.is_complex():
            samples.setdefault(tensor.device, []).append(_sample(tensor.detach()).double())
    for values in samples.values():  # one copy from each device
        digest.update(torch.cat(values).cpu().numpy().tobytes())
    for name, module in model.named_modules():
        state = [getattr(module, attribute, None) for attribute in ADAPTER_STATE] if hasattr(module, "scaling") else []
        if module.training or state:
            digest.update(repr((name, module.training, state)).encode())
    return digest.hexdigest()


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Values of a tensor at even distances, in the order of its memory where it lies in one piece."""
    count = min(NUM_SAMPLES, tensor.numel())
    step = tensor.numel() // count
    if tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)):
        return tensor.as_strided((count,), (step,))
    return tensor.reshape(-1)[: step * count : step]


__all__ = ["state_digest"]
