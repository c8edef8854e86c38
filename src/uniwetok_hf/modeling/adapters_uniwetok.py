# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Adapters that can't be loaded leave nothing in a model.

`peft` and transformers replace layers first and read weights afterwards: where that fails, a model is left with layers
without weights.
"""

import copy
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def unchanged_on_error(model: nn.Module) -> Generator[None]:
    """Takes back what the body did to the structure of `model` when it raises: layers, parameters, buffers, hooks,
    attributes, and what is trained. Values that were written into a parameter in place stay."""
    modules = [(module, type(module), dict(module.__dict__), _containers(module)) for module in model.modules()]
    parameters = [(parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for module, kind, attributes, containers in modules:
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for container, contents in containers:  # in place, since others hold them: handles of hooks, for example
                container.clear()
                container.extend(contents) if isinstance(container, list) else container.update(contents)
        for parameter, data, is_trained in parameters:
            parameter.data = data
            parameter.requires_grad_(is_trained)
        raise


def _containers(module: nn.Module) -> list[tuple[Any, Any]]:
    """The dicts, lists and sets of a module, with copies of them."""
    return [(value, copy.copy(value)) for value in module.__dict__.values() if isinstance(value, dict | list | set)]


class UniWeTokAdapterMixin:
    """Goes before `PreTrainedModel` among the base classes of a model."""

    def add_adapter(self, *args, **kwargs) -> None:
        """transformers' `add_adapter`; one that the model has no layers for leaves the model as it was."""
        with unchanged_on_error(self):  # ty: ignore[invalid-argument-type]
            super().add_adapter(*args, **kwargs)  # ty: ignore[missing-attribute]

    def load_adapter(self, peft_model_id=None, adapter_name: str | None = None, *args, **kwargs):
        """transformers' `load_adapter`. Unlike there, an adapter whose tensors are not those of its layers in this
        model is refused, and one that can't be loaded leaves the model as it was.

        Raises:
            ImportError: when `peft` is not installed.
            ValueError: when there is no such adapter, it is damaged, or it fits another model; the message names it.
        """
        load: Any = super().load_adapter  # ty: ignore[missing-attribute]
        name = adapter_name or "default"
        try:
            with unchanged_on_error(self):  # ty: ignore[invalid-argument-type]
                loaded = load(peft_model_id, adapter_name, *args, **kwargs)
                missing = [key for key in loaded.missing_keys if name in key.split(".")]
                if strange := [*missing, *loaded.unexpected_keys]:
                    raise ValueError(f"{min(strange)} is only in one of the two")
                return loaded
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # damaged files and layers of other models raise nearly anything
            raise ValueError(
                f"`peft_model_id` {peft_model_id} is no adapter for this model: {type(error).__name__}: {error}"
            ) from error


__all__ = ["UniWeTokAdapterMixin", "unchanged_on_error"]
