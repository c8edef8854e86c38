# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""A device without hardware: on it, code that mixes devices fails on any machine as it would fail on a GPU.

Its tensors say that they are on `meta`. Unlike those of torch they have values: each wraps a tensor of the CPU, where
operations are computed. So loops that read values run too, and results can be compared with those of the CPU.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only


CPU, DEVICE = torch.device("cpu"), torch.device("meta")

aten = torch.ops.aten
CROSSINGS = {aten._to_copy.default, aten.copy_.default}  # the legal ways from one device to the other
READS = {aten._local_scalar_dense.default}  # `item`, `bool(...)`, `float(...)`
# The shape of the result depends on the values.
COUNTS = {aten.nonzero.default, aten.masked_select.default, aten.unique_consecutive.default, aten._unique2.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
WITHOUT_SCALARS = {aten.cat.default, aten.stack.default}  # on a GPU they take no scalar of the CPU


class DeviceTensor(torch.Tensor):
    """A tensor on `DEVICE` whose values are those of `held`, on the CPU."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "DeviceTensor":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=DEVICE
        )
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on a tensor of `one_device` after its end.")


@contextmanager
def one_device(with_copies: bool = False) -> Iterator[list[str]]:
    """Inside the block `DEVICE` can be computed on. Gives a list of the operations that would wait for a GPU: those
    that bring values from it to the CPU, or make tensors whose shape depends on values, and `with_copies` copies from
    the CPU that are not `non_blocking`.

    An operation is refused with a `RuntimeError` when it takes tensors of both devices. As on a GPU, a tensor of the
    CPU without dimensions counts as a number, unless it is written to, concatenated or stacked. A GPU would also take
    indices of the CPU, and copy them in every call; here they are refused.
    """
    mode = _OneDevice(with_copies)
    with _KeepValues(), mode:
        yield mode.waits


def assert_same(compute: Callable[[torch.device], object]) -> list[str]:
    """Computes on the CPU and on the device: the tensors must be equal, and those of the device must be on it. Returns
    the operations that waited for the device."""
    expected, structure = tree_flatten(compute(CPU))
    with one_device() as reads:
        found, same_structure = tree_flatten(compute(DEVICE))
        assert structure == same_structure
        for one, other in zip(found, expected, strict=True):
            if torch.is_tensor(other):
                assert isinstance(one, DeviceTensor)
                torch.testing.assert_close(one.held.detach(), other.detach(), rtol=1e-3, atol=1e-4)
            elif isinstance(other, str):
                assert one == other
            else:
                is_rounded = getattr(other, "dtype", None) == np.uint8
                np.testing.assert_allclose(
                    np.asarray(one, float), np.asarray(other, float), rtol=1e-3, atol=1 if is_rounded else 1e-4
                )
    return reads


def on(device: torch.device, values):
    """A model in eval mode, or tensors in lists and dicts, on `device`."""
    if isinstance(values, nn.Module):
        return (values if device == CPU else moved(values)).eval()
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), values)


@functools.cache
def moved(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(DEVICE)


def gradients(loss: torch.Tensor, *learners) -> list[torch.Tensor]:
    """The loss, and its gradients by tensors and by the parameters of models."""
    wanted = [learner for learner in learners if torch.is_tensor(learner)]
    wanted += [p for learner in learners if isinstance(learner, nn.Module) for p in learner.parameters()]
    found = torch.autograd.grad(loss, [p for p in wanted if p.requires_grad], allow_unused=True)
    return [loss, *(gradient for gradient in found if gradient is not None)]


class _OneDevice(TorchDispatchMode):
    def __init__(self, with_copies: bool):
        super().__init__()
        self.with_copies = with_copies
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there, here, generators = [], [], []

        def values_of(part):
            if isinstance(part, DeviceTensor):
                there.append(part)
                return part.held
            if isinstance(part, torch.Tensor):
                here.append(part)
            elif isinstance(part, torch.Generator):
                generators.append(part)
            return part

        values, options = _map(values_of, args), _map(values_of, kwargs)
        device = kwargs.get("device")
        is_result_there = bool(there) if device is None else torch.device(device).type == DEVICE.type
        if any(tensor.device.type == DEVICE.type for tensor in here):
            raise RuntimeError(f"{func} on a tensor of {DEVICE} that was made outside `one_device`.")
        if generators and (there or is_result_there):
            raise RuntimeError(f"{func} draws on {DEVICE} from a generator of the CPU.")
        if there and here and func not in CROSSINGS and not _are_numbers(here, func, args, kwargs):
            shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (there, here)]
            raise RuntimeError(f"{func} mixes devices: {shapes[0]} on {DEVICE}, {shapes[1]} on the CPU.")

        is_copied = func in CROSSINGS and not isinstance(args[1 if func is aten.copy_.default else 0], DeviceTensor)
        if is_copied and is_result_there:
            waits = self.with_copies and not _is_non_blocking(func, args, kwargs)
        else:
            waits = bool(there) and _waits(func, args, is_result_there)
        if waits:
            self.waits.append(str(func))
        if device is not None:
            options["device"] = CPU
        result = func(*values, **options)
        if func is aten.copy_.default:
            return args[0]
        if not is_result_there or func in READS:
            return result
        result = _map(lambda part: DeviceTensor(part) if isinstance(part, torch.Tensor) else part, result)
        return return_and_correct_aliasing(func, args, kwargs, result) if there else result


def _is_non_blocking(func, args: tuple, kwargs: dict) -> bool:
    return bool(kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2]))


def _waits(func, args: tuple, is_result_there: bool) -> bool:
    """Whether the CPU would wait until a GPU has values of its own."""
    masks = args[1] if func in INDEXING else []
    by_mask = any(isinstance(mask, torch.Tensor) and mask.dtype == torch.bool for mask in masks)
    return func in READS or func in COUNTS or by_mask or not is_result_there


def _are_numbers(here: list[torch.Tensor], func, args: tuple, kwargs: dict) -> bool:
    """Whether a GPU takes these tensors of the CPU for numbers."""
    if func in WITHOUT_SCALARS or any(tensor.ndim for tensor in here):
        return False
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    written = [given.get(argument.name) for argument in func._schema.arguments if argument.is_write]
    return not any(tensor is target for tensor in here for target in written)


class _KeepValues(TorchFunctionMode):
    """Goes round the shortcuts that torch takes on `meta`, and by which values are lost."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.tolist:
            return args[0].cpu().tolist()
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):  # of `tensor[[0, 1]]`
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(i).to(args[0].device) if isinstance(i, list) else i for i in index)
            return func(args[0], index, *args[2:])
        if func is torch.Tensor.new_tensor:
            kwargs = {"dtype": args[0].dtype, "device": args[0].device} | kwargs
            func, args = torch.tensor, args[1:]
        if func in (torch.tensor, torch.as_tensor) and (device := kwargs.pop("device", None)) is not None:
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


def _map(change, parts):
    """`parts` of a call with all that are not lists, tuples or dicts changed. torch's own pytrees take longer than the
    operations do."""
    if type(parts) in (tuple, list):
        return type(parts)([_map(change, part) for part in parts])
    if type(parts) is dict:
        return {name: _map(change, part) for name, part in parts.items()}
    return change(parts)
