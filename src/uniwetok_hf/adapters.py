# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Which layers LoRA and the other methods of `peft` adapt in this package's models, and how adapters are saved.

    model.add_adapter(lora_config("language_model", "head"))     # transformers: on the model itself
    get_peft_model(model, lora_config("decoder", use_dora=True))  # peft: around it
    get_peft_model(model, LoHaConfig(target_modules=target_modules("head")))

The same expressions fit the whole model and its parts alone, so that an adapter can be trained on a [`UniWeTokModel`]
or a [`UniWeTokBinaryHead`] alone. `peft` is imported when it is first needed.
"""

import copy
import importlib
import importlib.util
import os
import tempfile
from pathlib import Path

from transformers.utils import is_peft_available


# The files of an adapter's folder, as `peft` names them, and the prefix of parameters' names in them.
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
PROJECTIONS = r"(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
# Full matches of module names: linear layers and convolutions only, since most methods know no others.
TARGETS = {
    # Names of the Llama family (Qwen, Mistral, Gemma, ...). Embeddings are left out: where they are tied to the
    # output, an adapter on one of the two would untie them.
    "language_model": rf"(model\.)?language_model\.layers\.\d+\.(self_attn|mlp)\.{PROJECTIONS}",
    # The modulations pass the language model's hidden states to the head. Queries and keys are left out: with patches
    # of one token they are not used, and missing gradients stop a training on several processes.
    "head": (
        r"(image_head\.)?(condition_proj|modulations\.\d+|"
        r"layers\.\d+\.(self_attn\.(v_proj|o_proj)|mlp\.(gate_proj|up_proj|down_proj)))"
    ),
    # Attention and residual blocks. The encoder is no target: the language model knows only the codes that it was
    # trained on.
    "decoder": (
        r"((model\.)?vision_model\.)?decoder\.(transformer\.layers\.\d+\.(self_attn|mlp)\."
        rf"{PROJECTIONS}|(mid_blocks\.\d+|up_blocks\.\d+\.blocks\.\d+)\.conv[12])"
    ),
}
# The targets of a `LoraConfig()` without targets, by `model_type`.
DEFAULT_PARTS = {
    "uniwetok_mllm": ("language_model", "head"),
    "uniwetok_head": ("head",),
    "uniwetok": ("decoder",),
}


def target_modules(*parts: str) -> str:
    """The regular expression of the layers to adapt, for the `target_modules` of any config of `peft`.

    Args:
        parts: of "language_model", "head" and "decoder"; by default the first two, which generate pictures and text.

    Raises:
        ValueError: for a part that is none of these.
    """
    parts = parts or DEFAULT_PARTS["uniwetok_mllm"]
    if unknown := [part for part in parts if part not in TARGETS]:
        raise ValueError(f"`parts` must be of {', '.join(TARGETS)}, got {unknown[0]!r}.")
    return "|".join(TARGETS[part] for part in parts)


def lora_config(*parts: str, r: int = 16, lora_alpha: float | None = None, **options):
    """A `peft.LoraConfig` for these parts of the model.

    Args:
        parts: of "language_model", "head" and "decoder"; by default the first two, which generate pictures and text.
        r: rank of the update.
        lora_alpha: the update is multiplied by `lora_alpha / r`; by default it is `r`, a factor of 1.
        options: other fields of `LoraConfig`, such as `use_dora=True`.

    Raises:
        ImportError: when `peft` is not installed.
        ValueError: for another part.
    """
    peft = load_peft()
    lora_alpha = r if lora_alpha is None else lora_alpha
    return peft.LoraConfig(**{"r": r, "lora_alpha": lora_alpha, "target_modules": target_modules(*parts)} | options)


def register_default_targets() -> None:
    """Gives configs without `target_modules` default targets in our models: `get_peft_model(model, LoraConfig())`.
    Importing `uniwetok_hf.pipelines` calls it. Does nothing without `peft`."""
    if not is_peft_available():
        return
    constants = load_peft().utils.constants
    for model_type, parts in DEFAULT_PARTS.items():
        constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[model_type] = target_modules(*parts)


def adapter_tensors(model, adapter_name: str, weights: dict | None = None) -> dict:
    """The tensors of an adapter of `model`, by the names that `peft` gives them; from `weights`, if given.
    transformers' `get_adapter_state_dict` would also ask the Hub whether the vocabulary was changed, and save
    embeddings then."""
    return load_peft().get_peft_model_state_dict(
        model, weights, adapter_name=adapter_name, save_embedding_layers=False
    )


def save_adapter(
    model,
    folder: str | os.PathLike,
    adapter_name: str = "default",
    base_model: str | None = None,
    weights: dict | None = None,
) -> None:
    """Writes an adapter and its card: a folder that pipelines, `peft` and transformers load. Other files of the folder
    stay.

    Args:
        model: a model to which `add_adapter` or `load_adapter` added the adapter.
        folder: where to write; it is created if need be.
        adapter_name: which adapter.
        base_model: name of the adapter's base model in its config and card; of a path the last part. By default the
            name in the adapter's config, unless that is a local path.
        weights: its parameters by their names in `model`, where those of `model` are shards.
    """
    from safetensors.torch import save_file

    config = copy.copy(model.peft_config[adapter_name])
    if base_model is None:
        known = config.base_model_name_or_path
        base_model = known if known and not os.path.exists(known) else None
    elif os.path.exists(base_model):
        base_model = Path(base_model).resolve().name
    config.base_model_name_or_path = base_model
    config.inference_mode = True
    tensors = {
        PEFT_PREFIX + name: tensor.detach().cpu().contiguous()
        for name, tensor in adapter_tensors(model, adapter_name, weights).items()
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".adapter-") as written:
        config.save_pretrained(written)
        save_file(tensors, Path(written) / WEIGHTS_FILE, metadata={"format": "pt"})
        save_adapter_card(config, written)
        for name in (WEIGHTS_FILE, "README.md", CONFIG_FILE):
            if (Path(written) / name).exists():
                os.replace(Path(written) / name, folder / name)


def save_adapter_card(config, folder: str | os.PathLike, model_id: str | None = None) -> None:
    """Writes the card of an adapter. Remote code without the package has no templates and writes none."""
    if importlib.util.find_spec("uniwetok_hf") is not None:
        cards = importlib.import_module("uniwetok_hf.cards")
        cards.adapter_card(config, model_id).save(Path(folder) / "README.md")


def load_peft():
    """The module `peft`. Imported by name, since the libraries that load code from the Hub demand that every import in
    it is installed.

    Raises:
        ImportError: when it is not installed.
    """
    if not is_peft_available():
        raise ImportError('adapters need peft: pip install "uniwetok-hf[train]"')
    return importlib.import_module("peft")


__all__ = ["lora_config", "register_default_targets", "save_adapter", "target_modules"]
