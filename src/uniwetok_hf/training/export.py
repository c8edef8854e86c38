# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""A model, a pipeline or an adapter of any checkpoint of a training, without its data and what it started from.

When a run starts it writes the folder `architecture`: all of its result but the weights (configs, processor, text
vocabulary, record), and `export.json`, which says what the result is and which parameters have averages. An export
adds the weights of a checkpoint: whole ones, those of adapters, or the shards of FSDP.
"""

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import nn

from ..adapters import CONFIG_FILE, load_peft, save_adapter
from ..files import WriteError, one_line, read_json, save_whole, write_failure
from ..modeling.configuration_uniwetok import UniWeTokConfig
from ..modeling.configuration_uniwetok_class_to_image import UniWeTokClassToImageConfig
from ..modeling.configuration_uniwetok_mllm import UniWeTokMLLMConfig
from ..modeling.image_processing_uniwetok import UniWeTokImageProcessor
from ..modeling.modeling_uniwetok import UniWeTokModel
from ..modeling.modeling_uniwetok_class_to_image import UniWeTokClassToImageModel
from ..modeling.modeling_uniwetok_mllm import UniWeTokForCausalLM
from ..modeling.processing_uniwetok import UniWeTokProcessor
from ..provenance import RECORD
from ..schedulers import BinaryFlowScheduler
from .checkpoints import check_checkpoint, list_checkpoints, readable
from .run import seeded_weights
from .sharding import EARLIER, SHARDS


if TYPE_CHECKING:
    from ..pipelines import (  # slow to import, and no training of the image tokenizer needs it
        UniWeTokClassToImagePipeline,
        UniWeTokPipeline,
    )


ARCHITECTURE, FIELDS = "architecture", "export.json"
# Accelerate's names for the first model of a checkpoint, and for the average, which all trainers register first.
WHOLE, AVERAGE = "model.safetensors", "custom_checkpoint_0.pkl"
FSDP_WHOLE, DEEPSPEED = "pytorch_model_fsdp.bin", "pytorch_model"
SAVE_DTYPES = ("float32", "bfloat16", "float16")
WRAPPERS = ("module.", "_orig_mod.")  # what DDP and torch.compile put before names


@dataclass
class ExportFields:
    """`export.json`: what the result is (one of `WRITERS`), the parameters' names in the order of
    their averages, the dtype in which the result is saved, and the name of an adapter's base model."""

    result: str
    averaged: list[str] | None
    dtype: str = "float32"
    base_model: str | None = None


def names_of(parameters: list[nn.Parameter], model: nn.Module) -> list[str]:
    """The names of `parameters` in `model`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in parameters]


def write_architecture(folder: Path, fields: ExportFields, record: dict, *parts) -> None:
    """Writes `architecture` of the run in `folder`; `parts` have `save_pretrained`, each with its subfolder or ""."""

    def save(path: Path) -> None:
        path.mkdir()
        for part, subfolder in parts:
            part.save_pretrained(path / subfolder)
        (path / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        (path / FIELDS).write_text(json.dumps(asdict(fields)), encoding="utf-8")

    save_whole(save, folder / ARCHITECTURE)


def pipeline_parts(pipeline: "UniWeTokPipeline") -> list[tuple]:
    """The parts of a pipeline without weights, for [`write_architecture`]."""
    mllm = pipeline.mllm
    parts = [(pipeline.processor, "processor"), (pipeline.scheduler, "scheduler"), (mllm.config, "mllm")]
    return [*parts, (mllm.generation_config, "mllm"), (_PipelineConfig(pipeline), "")]


def class_pipeline_parts(pipeline: "UniWeTokClassToImagePipeline") -> list[tuple]:
    """The parts of a class-to-image pipeline for [`write_architecture`]: without the weights that are trained, but
    with the image tokenizer, which is not in a checkpoint."""
    parts = [(pipeline.vision_model, "vision_model"), (pipeline.image_processor, "image_processor")]
    parts += [(pipeline.scheduler, "scheduler"), (pipeline.transformer.config, "transformer")]
    return [*parts, (_PipelineConfig(pipeline), "")]


@dataclass
class _PipelineConfig:
    """`model_index.json`."""

    pipeline: "UniWeTokPipeline | UniWeTokClassToImagePipeline"

    def save_pretrained(self, folder: Path) -> None:
        self.pipeline.save_config(folder)


def export_checkpoint(checkpoint: str | os.PathLike, out: str | os.PathLike, averaged: bool = True) -> Path:
    """Makes a folder for `from_pretrained` (tokenizer, pipeline) or `load_adapter` of a checkpoint of a training.

    Args:
        checkpoint: a folder `.../checkpoints/step-000500` of a run, or the folder of a run for its last one.
        out: folder to be made; may exist if it is empty.
        averaged: whether the weights are their moving averages, where the training has some.

    Raises:
        ValueError: when there is no checkpoint, it is broken, or its weights are in a format of DeepSpeed.
        FileExistsError: when `out` is there and not empty.
        OSError: when `out` can't be written.
    """
    path, out = _find(Path(checkpoint)), Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} exists already and is not empty.")
    step, source = check_checkpoint(path)["step"], path.parent.parent / ARCHITECTURE
    if not (source / FIELDS).is_file():
        raise ValueError(
            f"{path.parent.parent} has no folder `{ARCHITECTURE}`: the run was started by an earlier version. Resume "
            "it with this one, which writes the folder at the start."
        )
    fields, record = _read_architecture(source)
    is_averaged = averaged and fields.averaged is not None
    with readable(path):
        weights = read_weights(path)
        if is_averaged:
            weights |= _read_averages(path, fields.averaged)
    record["training"].update(exported_step=step, exported_weights="averaged" if is_averaged else "raw")

    def save(folder: Path) -> None:
        try:
            WRITERS[fields.result](folder, source, weights, fields)
        except (MemoryError, WriteError):
            raise
        except Exception as error:  # of a damaged config the libraries raise nearly anything
            is_of_disk = write_failure(error) is not None and getattr(error, "errno", 0) is not None
            if is_of_disk and not str(getattr(error, "filename", "")).startswith(str(source)):
                raise
            if isinstance(error, ValueError) and str(error).startswith("The checkpoint"):
                raise ValueError(f"{error} The checkpoint is {path}, its model that of {source}.") from error
            raise ValueError(f"{source} does not load: {type(error).__name__}: {one_line(error)}") from error
        (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")

    out.parent.mkdir(parents=True, exist_ok=True)
    return save_whole(save, out)


def _read_architecture(source: Path) -> tuple[ExportFields, dict]:
    """`export.json` and `training.json` of a folder `architecture`.

    Raises:
        ValueError: naming the file that is damaged.
    """
    try:
        fields = ExportFields(**read_json(source / FIELDS))
    except TypeError as error:
        raise ValueError(f"{source / FIELDS} is damaged ({error}).") from None
    averaged = fields.averaged if isinstance(fields.averaged, list) else [fields.averaged]
    is_text = all(isinstance(value, str | None) for value in (*averaged, fields.base_model))
    if fields.result not in list(WRITERS) or fields.dtype not in SAVE_DTYPES or not is_text:
        raise ValueError(f"{source / FIELDS} is damaged: {str(asdict(fields))[:200]}.")
    record = read_json(source / RECORD)
    if not isinstance(record.setdefault("training", {}), dict):
        raise ValueError(f"{source / RECORD} is damaged: `training` is {record['training']!r:.100}.")
    return fields, record


def _find(path: Path) -> Path:
    """The folder of a checkpoint."""
    if not path.is_dir():
        raise ValueError(f"`checkpoint` {path}: there is no such folder.")
    if path.parent.name == "checkpoints":
        return path
    found = list_checkpoints(path)
    if not found:
        raise ValueError(f"`checkpoint` {path} is neither a checkpoint, .../checkpoints/step-N, nor a run with some.")
    return found[-1]


def read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights of the first model of a checkpoint on the CPU, by their names in the model.

    Raises:
        ValueError: when there are none, or only those of DeepSpeed.
    """
    if (checkpoint / WHOLE).is_file():
        weights = load_file(checkpoint / WHOLE)
    elif (shards := _find_shards(checkpoint, "model")) is not None:
        weights = _read_shards(shards, "model")
    elif (checkpoint / FSDP_WHOLE).is_file():
        weights = torch.load(checkpoint / FSDP_WHOLE, map_location="cpu", weights_only=True)
    elif (checkpoint / DEEPSPEED).is_dir():
        raise ValueError(
            f"{checkpoint} holds shards of DeepSpeed, which only DeepSpeed reads: its script zero_to_fp32.py, in the "
            "same folder, makes one file of weights of them."
        )
    else:
        raise ValueError(f"{checkpoint} holds no weights.")

    def bare(name: str) -> str:
        while name.startswith(WRAPPERS):
            name = name.split(".", 1)[1]
        return name

    return {bare(name): tensor for name, tensor in weights.items()}


def _read_averages(checkpoint: Path, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The averages of a checkpoint, by the names of their parameters."""
    if (shards := _find_shards(checkpoint, "averages")) is not None:
        return _read_shards(shards, "averages")
    average = torch.load(checkpoint / AVERAGE, map_location="cpu", weights_only=True)["shadow_params"]
    return {name: average[index] for index, name in enumerate(names)}


def _find_shards(checkpoint: Path, part: str) -> Path | None:
    """The folder with the shards of a part, if there is one."""
    names = [SHARDS, *(name for name, parts in EARLIER.items() if part in parts)]
    return next((folder for name in names if (folder := checkpoint / name).is_dir()), None)


def _read_shards(folder: Path, part: str) -> dict[str, torch.Tensor]:
    """A part of what `torch.distributed.checkpoint` wrote on several processes, on one."""
    from torch.distributed import checkpoint

    stored = checkpoint.FileSystemReader(folder).read_metadata().state_dict_metadata
    prefix = f"{part}."
    state = {
        name.removeprefix(prefix): torch.empty(item.size, dtype=item.properties.dtype)
        for name, item in stored.items()
        if isinstance(item, checkpoint.TensorStorageMetadata) and name.startswith(prefix)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # which is the intent
        checkpoint.load({part: state}, checkpoint_id=folder, no_dist=True)
    return state


def _with_weights(model: nn.Module, weights: dict[str, torch.Tensor], fields: ExportFields) -> nn.Module:
    """A model with all of its weights replaced. Of tied ones the checkpoint has one name, or all (FSDP), of which that
    with an average counts.

    Raises:
        ValueError: when it lacks a weight, or has one more.
    """
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    averaged = {own[name].data_ptr(): name for name in fields.averaged or () if name in own}
    weights = {
        name: tensor
        for name, tensor in weights.items()
        if name not in own or averaged.get(own[name].data_ptr(), name) == name
    }
    missing, unexpected = model.load_state_dict(weights, strict=False)
    loaded = {own[name].data_ptr() for name in weights if name in own}
    wrong = [name for name in missing if own[name].data_ptr() not in loaded] + list(unexpected)
    if wrong:
        raise ValueError(f"The checkpoint does not have the weights of its model: {wrong[0]} is missing or unknown.")
    return model


def _write_model(folder: Path, source: Path, weights: dict[str, torch.Tensor], fields: ExportFields) -> None:
    with seeded_weights(0):
        model = UniWeTokModel(UniWeTokConfig.from_pretrained(source))
    _with_weights(model, weights, fields).to(getattr(torch, fields.dtype)).save_pretrained(folder)
    UniWeTokImageProcessor.from_pretrained(source).save_pretrained(folder)


def _write_pipeline(folder: Path, source: Path, weights: dict[str, torch.Tensor], fields: ExportFields) -> None:
    from ..pipelines import UniWeTokPipeline

    with seeded_weights(0):
        model = UniWeTokForCausalLM(UniWeTokMLLMConfig.from_pretrained(source / "mllm"))
    _with_weights(model, weights, fields).to(getattr(torch, fields.dtype))
    model.generation_config = type(model.generation_config).from_pretrained(source / "mllm")
    defaults = {k: v for k, v in UniWeTokPipeline.load_config(source).items() if k.startswith("default_")}
    processor = UniWeTokProcessor.from_pretrained(source / "processor")
    scheduler = BinaryFlowScheduler.from_pretrained(source / "scheduler")
    UniWeTokPipeline(processor, model, scheduler, **defaults).save_pretrained(folder)


def _write_class_pipeline(folder: Path, source: Path, weights: dict[str, torch.Tensor], fields: ExportFields) -> None:
    from ..pipelines import UniWeTokClassToImagePipeline

    with seeded_weights(0):
        model = UniWeTokClassToImageModel(UniWeTokClassToImageConfig.from_pretrained(source / "transformer"))
    _with_weights(model, weights, fields)
    vision_model = UniWeTokModel.from_pretrained(source / "vision_model", dtype=torch.float32)
    image_processor = UniWeTokImageProcessor.from_pretrained(source / "image_processor")
    scheduler = BinaryFlowScheduler.from_pretrained(source / "scheduler")
    saved = UniWeTokClassToImagePipeline.load_config(source)
    options = {name: value for name, value in saved.items() if name.startswith("default_") or name == "id2label"}
    pipeline = UniWeTokClassToImagePipeline(model, vision_model, image_processor, scheduler, **options)
    pipeline.to(getattr(torch, fields.dtype)).save_pretrained(folder)


def _write_adapter(folder: Path, source: Path, weights: dict[str, torch.Tensor], fields: ExportFields) -> None:
    """The model that carries the adapter stays without memory."""
    with torch.device("meta"):
        model = UniWeTokForCausalLM(UniWeTokMLLMConfig.from_pretrained(source / "mllm"))
        config = load_peft().PeftConfig.from_pretrained(source)
        initialisation, config.init_lora_weights = config.init_lora_weights, True  # others compute with the weights
        model.add_adapter(config)
    config.init_lora_weights = initialisation
    dtype = getattr(torch, fields.dtype)
    _, unexpected = model.load_state_dict({k: v.to(dtype) for k, v in weights.items()}, strict=False, assign=True)
    if unexpected or any(p.is_meta for name, p in model.named_parameters() if p.requires_grad):
        raise ValueError(f"The checkpoint does not have the weights of the adapter in {source / CONFIG_FILE}.")
    save_adapter(model, folder, base_model=fields.base_model)


WRITERS = {
    "model": _write_model,
    "pipeline": _write_pipeline,
    "adapter": _write_adapter,
    "class_pipeline": _write_class_pipeline,
}
