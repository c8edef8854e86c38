# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Muon for the matrices of layers, and AdamW for the rest: one optimizer for schedules, checkpoints and Accelerate."""

import re

import torch
from torch import nn


LAYER = re.compile(r"\blayers\.\d+\.")


def muon_groups(model: nn.Module, parameters: list[nn.Parameter]) -> list[dict]:
    """The groups of [`MuonWithAdamW`]: the matrices of the layers among `parameters`, with `use_muon`, and the others
    (embeddings, projections, norms, biases).

    Raises:
        ValueError: when there are no such matrices, as in adapters.
    """
    chosen = {id(parameter) for parameter in parameters}
    matrices = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and LAYER.search(name) and "lora_" not in name and id(parameter) in chosen
    }
    if not matrices:
        raise ValueError("`optimizer` muon is for the matrices of layers, and none of them trains: use adamw.")
    groups = [
        {"params": [parameter for parameter in parameters if (id(parameter) in matrices) == use_muon]}
        | {"use_muon": use_muon}
        for use_muon in (True, False)
    ]
    return [group for group in groups if group["params"]]


class MuonWithAdamW(torch.optim.Optimizer):
    """
    `torch.optim.Muon` on groups with `use_muon`, its steps scaled to the size of AdamW's so that one learning rate
    fits both, and `torch.optim.AdamW` on the others. The two work on the groups and the state of this one.

    Args:
        groups: parameters, in groups with the key `use_muon`.
        options: of AdamW; Muon takes `lr` and `weight_decay` of them.
    """

    def __init__(self, groups: list[dict], **options):
        shared = {"lr": options["lr"], "weight_decay": options["weight_decay"], "adjust_lr_fn": "match_rms_adamw"}
        self._parts = [
            torch.optim.Muon([group], **shared) if group["use_muon"] else torch.optim.AdamW([group], **options)
            for group in groups
        ]
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state

    @torch.no_grad()
    def step(self, closure=None):
        """One step of each part."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        """As in torch; the parts work on what was loaded."""
        super().load_state_dict(state_dict)
        self._share()
