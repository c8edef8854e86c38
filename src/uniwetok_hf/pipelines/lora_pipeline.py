# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""LoRA adapters in a pipeline, under diffusers' names.

diffusers' own `LoraBaseMixin`, which handles transformers models too, does most of it: `get_active_adapters`,
`get_list_adapters`, `set_adapters`, `enable_lora`, `disable_lora`, `fuse_lora`, `unload_lora_weights`. This file has
what it can't do:

- loading and saving in the format of `peft` (`adapter_config.json` and `adapter_model.safetensors`, as `uniwetok train
  mllm --lora` and `save_pretrained` of `peft` and transformers write it);
- the scale of `fuse_lora`, which diffusers leaves in the layers after `unfuse_lora`;
- errors where diffusers goes on in silence: unknown names, changes to fused weights, a pipeline saved with adapters.

Pipelines made of one model (`from_pipe`) share its adapters.
"""

import contextlib
import os
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from torch import nn
from transformers.utils import cached_file

from ..adapters import (
    CONFIG_FILE,
    PEFT_PREFIX,
    WEIGHTS_FILE,
    adapter_tensors,
    load_peft,
    register_default_targets,
    save_adapter,
    save_adapter_card,
)
from ..files import writing
from ..modeling.adapters_uniwetok import unchanged_on_error


# Methods of `peft` whose updates can be weighted and merged.
WEIGHTED_METHODS = ("LORA", "LOHA", "LOKR")

# Fields of their configs that change or keep more than the update of a layer; beside them, starting weights that are
# taken out of the model's own.
MORE_THAN_UPDATES = ("modules_to_save", "trainable_token_indices", "layer_replication")
PLAIN_STARTS = (True, False, "gaussian", "orthogonal")

# Where an adapter belongs that was trained on a `UniWeTokModel` or a `UniWeTokBinaryHead` alone, by its names.
PARTS_ALONE = {"model.vision_model.": ("decoder.",), "image_head.": ("condition_proj.", "modulations.", "layers.")}

HUB_OPTIONS = ("subfolder", "revision", "token", "cache_dir", "force_download", "local_files_only")

register_default_targets()  # diffusers has imported peft already, where there is one


class UniWeTokLoraMixin(LoraBaseMixin):
    """Adapters of `mllm`: of the language model, the head and the image tokenizer."""

    _lora_loadable_modules = ["mllm"]
    mllm: Any

    @classmethod
    def lora_state_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **hub_options):
        """The tensors of an adapter, named as in the whole model, and its `peft` config. Only safetensors is read.

        Args:
            pretrained_model_name_or_path, hub_options: as in [`load_lora_weights`].

        Raises:
            ImportError: when `peft` is not installed.
            ValueError: when there is no such adapter, or for another option.
        """
        peft = load_peft()
        from safetensors.torch import load_file

        if strange := sorted(hub_options.keys() - set(HUB_OPTIONS)):
            raise ValueError(
                f"An adapter is {CONFIG_FILE} and {WEIGHTS_FILE}: `{strange[0]}` is no option, but "
                f"{', '.join(HUB_OPTIONS)} are."
            )
        if isinstance(pretrained_model_name_or_path, dict):
            raise ValueError(
                "`pretrained_model_name_or_path` must be the folder or Hub id of an adapter, got a dict of tensors "
                "without the adapter's config. `peft.set_peft_model_state_dict(pipe.mllm, ...)` "
                "takes them after `pipe.mllm.add_adapter(config)`."
            )
        source = os.fspath(pretrained_model_name_or_path)
        problem = f"`pretrained_model_name_or_path` {source} is no adapter ({CONFIG_FILE}, {WEIGHTS_FILE}): "
        if not os.path.isdir(source) and source.count("/") != 1:
            raise ValueError(f"{problem}there is no such folder, and on the Hub names are org/name")
        is_run = os.path.isdir(adapter := os.path.join(source, "adapter"))
        if is_run and not hub_options.get("subfolder") and not os.path.isfile(os.path.join(source, CONFIG_FILE)):
            raise ValueError(f"{problem}{adapter} is what the training made")
        try:
            config_file, weights_file = (
                str(cached_file(source, name, **hub_options)) for name in (CONFIG_FILE, WEIGHTS_FILE)
            )
        except OSError as error:
            if isinstance(error.__cause__, RepositoryNotFoundError):
                raise ValueError(
                    f"`pretrained_model_name_or_path` {source} is neither a folder here nor a repository on the Hub "
                    "that you may read; for a private one, log in with `hf auth login` or pass `token`."
                ) from error
            raise ValueError(problem + str(error)) from error
        try:
            config, tensors = peft.PeftConfig.from_pretrained(Path(config_file).parent), load_file(weights_file)
        except MemoryError:
            raise
        except Exception as error:  # a damaged config makes `peft` raise nearly anything
            raise ValueError(f"{problem}{type(error).__name__}: {error}") from error
        tensors = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in tensors.items()}
        for prefix, parts in PARTS_ALONE.items():
            if all(name.startswith(parts) for name in tensors):
                tensors = {prefix + name: tensor for name, tensor in tensors.items()}
        return tensors, config

    def load_lora_weights(
        self,
        pretrained_model_name_or_path: str | os.PathLike,
        adapter_name: str | None = None,
        adapter_weight: float = 1.0,
        **hub_options,
    ) -> None:
        """Loads an adapter and makes it the active one; `set_adapters` mixes several.

        Args:
            pretrained_model_name_or_path: folder, or id on the Hub, of an adapter in the format of `peft`.
            adapter_name: name of the adapter; "default_0", "default_1", ... when not given.
            adapter_weight: factor of its update.
            hub_options: `subfolder`, `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            ImportError: when `peft` is not installed.
            ValueError: when there is no such adapter, it fits another model, its name is taken, adapters are fused, or
                weights are moved layer by layer already; the pipeline is then as it was.
        """
        self._check_not_fused()
        self._check_not_offloaded()
        tensors, config = self.lora_state_dict(pretrained_model_name_or_path, **hub_options)
        problem = f"`pretrained_model_name_or_path` {pretrained_model_name_or_path} "
        loaded, base_model = self._adapters(), config.base_model_name_or_path
        if adapter_name is None:
            adapter_name = next(name for i in range(len(loaded) + 1) if (name := f"default_{i}") not in loaded)
        if adapter_name in loaded:
            raise ValueError(f"`adapter_name` {adapter_name!r} is taken; loaded are {', '.join(loaded)}.")
        if "." in adapter_name or hasattr(nn.ModuleDict(), adapter_name):  # torch keeps layers by it
            raise ValueError(f"`adapter_name` must have no dot, and be no name in ModuleDict, got {adapter_name!r}.")
        if kind := other_kind(config):
            raise ValueError(
                f"{problem}is an adapter of another kind ({kind}) than pipelines weight and merge: "
                f"{', '.join(WEIGHTED_METHODS)}. `pipe.mllm.load_adapter` loads it."
            )
        try:
            # Not `load_adapter`: it finds an adapter's weights by its name, which may be part of other weights' names.
            with unchanged_on_error(self.mllm), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are fine
                self.mllm.add_adapter(config, adapter_name)
                if strange := set(adapter_tensors(self.mllm, adapter_name)) ^ set(tensors):
                    raise ValueError(f"{min(strange)} is only in one of the two")
                load_peft().set_peft_model_state_dict(self.mllm, tensors, adapter_name)
                config.base_model_name_or_path = base_model  # not where this model was loaded from
                self.mllm.train(self.mllm.training)  # the new layers too
                self.set_adapters(adapter_name, adapter_weight)
        except MemoryError:
            raise
        except Exception as error:  # `peft` raises nearly anything where layers are of another kind
            raise ValueError(f"{problem}is an adapter for another model: {error}") from error

    def save_lora_weights(
        self,
        save_directory: str | os.PathLike,
        adapter_name: str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        private: bool | None = None,
        token: str | None = None,
    ) -> None:
        """Writes an adapter as a folder that `load_lora_weights`, `peft` and transformers read.

        Args:
            save_directory: the folder.
            adapter_name: which adapter; the active one when not given.
            push_to_hub, repo_id, private, token: whether to push the adapter as well, and where to; by default the
                repository has the name of the folder.

        Raises:
            ValueError: when there is no adapter of that name, or no name is given and not exactly one is active.
            OSError: naming `save_directory`, whose files are as before, when it can't be written.
        """
        active = self.get_active_adapters()
        if not self._adapters():
            raise ValueError("`save_lora_weights` needs an adapter: load one with `load_lora_weights`.")
        if adapter_name is None and len(active) != 1:
            raise ValueError(f"`adapter_name` must be given when {len(active)} adapters are active.")
        adapter_name = adapter_name or active[0]
        self._check_names(adapter_name)
        with writing(save_directory):
            save_adapter(self.mllm, save_directory, adapter_name)
        if push_to_hub:
            api, folder = HfApi(token=token), Path(save_directory)
            repo_id = api.create_repo(repo_id or folder.name, private=private, exist_ok=True).repo_id
            save_adapter_card(self.mllm.peft_config[adapter_name], folder, repo_id)
            api.upload_folder(
                repo_id=repo_id, folder_path=folder, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, "README.md"]
            )

    def set_adapters(self, adapter_names: list[str] | str, adapter_weights=None) -> None:
        """Activates these adapters. `adapter_weights`, a number or one per adapter, multiply their updates.

        Raises:
            ValueError: for a name that no adapter has, or when adapters are fused.
        """
        self._check_not_fused()
        self._check_names(adapter_names)
        super().set_adapters(adapter_names, adapter_weights)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Removes adapters.

        Raises:
            ValueError: for a name that no adapter has, or when adapters are fused.
        """
        self._check_not_fused()
        self._check_names(adapter_names)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self._remove_adapter(name)

    def fuse_lora(
        self,
        components: list[str] | tuple[str, ...] = ("mllm",),
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
    ) -> None:
        """Adds the updates of the active adapters (of `adapter_names`, which it activates) to the weights, so that
        they take no time of their own: each times the weight that `set_adapters` gave it, all times `lora_scale`.
        `unfuse_lora` takes them out again; after `unload_lora_weights` the fused weights are an ordinary model.

        Raises:
            ValueError: when no adapter is loaded, some are fused already, there is no adapter of that name, or
                `lora_scale` is 0, which could not be undone; with `safe_fusing` also when an update is not finite. The
                pipeline is then as it was.
        """
        self._check_not_fused()
        if lora_scale == 0:
            raise ValueError("`lora_scale` must not be 0; `disable_lora` leaves the adapters out.")
        self._check_names(adapter_names or [])
        if not self._adapters():
            raise ValueError("`fuse_lora` needs an adapter: load one with `load_lora_weights`.")
        # Without `safe_fusing` weights are changed in place: then the layers that are fused are taken out again.
        with unchanged_on_error(self.mllm) if safe_fusing else self._unfused_on_error():
            if adapter_names:
                self.mllm.set_adapter(list(adapter_names))
            super().fuse_lora(list(components), lora_scale, safe_fusing)
        self.mllm._fused_lora_scale = lora_scale  # other pipelines may share the model

    def unfuse_lora(self, components: list[str] | tuple[str, ...] = ("mllm",)) -> None:
        """Undoes `fuse_lora`, its `lora_scale` included."""
        is_fused = self._is_fused()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already unmerged")  # layers without this adapter
            super().unfuse_lora(list(components))
        if is_fused:
            for layer in self._adapted_layers():
                layer.unscale_layer(self.mllm._fused_lora_scale)

    def _adapters(self) -> list[str]:
        return list(getattr(self.mllm, "peft_config", None) or {})

    def _adapted_layers(self) -> list:
        layer_class = load_peft().tuners.tuners_utils.BaseTunerLayer
        return [module for module in self.mllm.modules() if isinstance(module, layer_class)]

    @contextlib.contextmanager
    def _unfused_on_error(self) -> Generator[None]:
        active, layers = self.get_active_adapters(), self._adapted_layers()
        scales = [dict(layer.scaling) for layer in layers]
        try:
            yield
        except BaseException:
            for layer, scale in zip(layers, scales, strict=True):
                if layer.merged:
                    layer.unmerge()
                layer.scaling.clear()
                layer.scaling.update(scale)
            self.mllm.set_adapter(active)
            raise

    def _is_fused(self) -> bool:
        return bool(self._adapters()) and any(layer.merged for layer in self._adapted_layers())

    def _check_not_offloaded(self) -> None:
        """New layers of adapters would be left out of what moves the weights."""
        from diffusers.hooks.group_offloading import _is_group_offload_enabled

        on_meta = any(parameter.device.type == "meta" for parameter in self.mllm.parameters())
        if on_meta or _is_group_offload_enabled(self.mllm):
            raise ValueError(
                "Adapters must be loaded before `enable_sequential_cpu_offload`, `enable_group_offload` or a "
                "`device_map` move the model layer by layer; `remove_all_hooks` ends the first."
            )

    def _check_not_fused(self) -> None:
        if self._is_fused():
            raise ValueError("Adapters are fused into the weights; call `unfuse_lora` or `unload_lora_weights` first.")

    def _check_names(self, adapter_names: list[str] | str) -> None:
        loaded = self._adapters()
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        if unknown := [name for name in names if name not in loaded]:
            known = f"loaded are {', '.join(loaded)}" if loaded else "none is loaded"
            raise ValueError(f"`adapter_names`: there is no adapter {unknown[0]!r}; {known}.")

    def _remove_adapter(self, adapter_name: str) -> None:
        """Removes an adapter, even one that is only partly there. With the last adapter peft's layers around the
        weights go too: the model would be saved under their names."""
        if adapter_name in self._adapters():
            self.mllm.delete_adapter(adapter_name)
        if not self._adapters():
            self.unload_lora_weights()
            self.mllm._hf_peft_config_loaded = False


def other_kind(config) -> str | None:
    """What keeps an adapter of this `peft` config from being weighted, merged and taken out again; None if nothing."""
    if config.peft_type not in WEIGHTED_METHODS:
        return config.peft_type.value
    if fields := [name for name in MORE_THAN_UPDATES if getattr(config, name, None)]:
        return f"one with `{fields[0]}`"
    for name, plain in (("bias", ("none",)), ("lora_bias", (False,)), ("init_lora_weights", PLAIN_STARTS)):
        if (value := getattr(config, name, plain[0])) not in plain:
            return f"one with `{name}` {value!r}"
    return None


__all__ = ["UniWeTokLoraMixin"]
