# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Published checkpoints to folders that `from_pretrained` loads."""

import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoTokenizer, PreTrainedModel

from ..files import one_line, writing
from ..modeling.configuration_uniwetok import UniWeTokConfig
from ..modeling.image_processing_uniwetok import UniWeTokImageProcessor
from ..modeling.modeling_uniwetok import UniWeTokModel
from ..modeling.modeling_uniwetok_class_to_image import UniWeTokClassToImageModel
from ..modeling.modeling_uniwetok_mllm import UniWeTokForCausalLM
from .configs import (
    abbreviate,
    published_guidance,
    read_class_to_image_config,
    read_labels,
    read_mllm_config,
    read_vision_config,
)
from .keys import (
    HEAD_RULES,
    PLAIN_HEAD_RULES,
    PROJECTOR_RULES,
    VISION_RULES,
    Rules,
    class_to_image_rules,
    language_rules,
    native_names,
    published_name,
)
from .layouts import PublishedClassToImage, PublishedPart, PublishedTextToImage, PublishedVision, find_published
from .shards import OutputTensor, parse_size, write_shards
from .tensors import WEIGHT_DTYPES, ConversionError, TensorInfo, TensorSource, published_tensors, row_chunks


CHUNK_BYTES = 1 << 25  # what is in memory at a time


@dataclass
class Component:
    """Tensors of one part, `names` telling the stored name of each published one, and their place in our model."""

    source: TensorSource
    names: dict[str, str]
    rules: Rules
    prefix: str = ""

    def native_names(self, name: str) -> tuple[str, ...]:
        return tuple(self.prefix + native for native in native_names(name, self.rules))

    def published_name(self, native: str) -> str | None:
        inside = native.startswith(self.prefix)
        return published_name(native.removeprefix(self.prefix), self.rules) if inside else None


@dataclass(frozen=True)
class Options:
    """Checked arguments of [`convert_checkpoint`]."""

    num_attention_heads: int | None
    dtype: torch.dtype | None
    shard_bytes: int
    ignored_prefixes: tuple[str, ...]


def convert_checkpoint(
    src: str | Path,
    out: str | Path,
    num_attention_heads: int | None = None,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    ignored_prefixes: Sequence[str] = (),
) -> Path:
    """Converts a published checkpoint (docs/method.md 1.3).

    Tensors go from file to file in small chunks, so that any size fits in little memory. The result appears at once
    when all is done, and nothing when something is wrong.

    Args:
        src: an image tokenizer, as a folder (`ae_config.json` and `ae.safetensors` or another single weight file) or a
            single `.safetensors`, `.pt`, `.pth`, `.ckpt` or `.bin` file; or a text-to-image folder, in the authors'
            layout or in the diffusers layout of the community; or a class-to-image model, as the authors' file or as
            a folder, with its image tokenizer in the same file (`vae.`) or beside it.
        out: folder to be made; may exist if it is empty. An image tokenizer becomes a folder for
            `UniWeTokModel.from_pretrained`, a text-to-image model one for `UniWeTokPipeline.from_pretrained`, a
            class-to-image model one for `UniWeTokClassToImagePipeline.from_pretrained`.
        num_attention_heads: attention heads of the image tokenizer, where no JSON tells them; by default 16, with a
            warning.
        dtype: dtype of the floating-point weights, as `"bfloat16"` or `torch.bfloat16`; by default as they are stored,
            and bfloat16 where that is a float of 8 bits, which models can't be built in.
        max_shard_size: largest size of a weight file, in bytes or like `"5GB"`.
        ignored_prefixes: how the names of further tensors of a tokenizer's training checkpoint start that are to be
            left out; its losses (`loss.`) always are.

    Returns:
        `out`.

    Raises:
        ConversionError: when `src` is none of these, is damaged, or has missing, unknown or misshaped tensors (all are
            named).
        ValueError: for another bad argument.
        FileExistsError: when there is something at `out`.
    """
    src, out = Path(src), Path(out)
    options = Options(num_attention_heads, _check_dtype(dtype), parse_size(max_shard_size), tuple(ignored_prefixes))
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} exists already and is not empty.")
    if num_attention_heads is not None and num_attention_heads < 1:
        raise ValueError(f"`num_attention_heads` must be 1 or more, got {num_attention_heads}.")
    try:
        published = find_published(src)
        converters = {
            PublishedVision: _convert_vision,
            PublishedTextToImage: _convert_text_to_image,
            PublishedClassToImage: _convert_class_to_image,
        }
        convert = converters[type(published)]
        with _new_folder(out) as folder:
            convert(published, folder, options)
    except ConversionError as error:
        raise ConversionError(f"{src} can't be converted: {error}") from error
    return out


def _check_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found not in (None, torch.float32, torch.float16, torch.bfloat16) or (dtype is not None and found is None):
        raise ValueError(f"`dtype` must be float32, float16, bfloat16 or None, got {dtype!r}.")
    return found


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` if all goes well and vanishes if not."""
    out = out.resolve()
    new_parents = [parent for parent in out.parents if not parent.exists()]
    folder = out.with_name(f".{out.name}-{uuid.uuid4().hex[:8]}.part")
    try:
        with writing(out):
            folder.mkdir(parents=True)
            yield folder
            if out.exists():
                out.rmdir()  # empty, or this fails
            folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another process may use them by now
            for parent in new_parents:
                parent.rmdir()
        raise


def _convert_vision(published: PublishedVision, folder: Path, options: Options) -> None:
    component, config = _read_vision(published.vision, options)
    with torch.device("meta"):
        model = UniWeTokModel(config)
    _write_model(folder, model, [component], options)
    UniWeTokImageProcessor(stride=config.stride).save_pretrained(folder)


def _convert_text_to_image(published: PublishedTextToImage, folder: Path, options: Options) -> None:
    # Here and not above, since diffusers takes a while to import.
    from ..modeling.processing_uniwetok import UniWeTokProcessor
    from ..pipelines import UniWeTokPipeline
    from ..schedulers import BinaryFlowScheduler

    vision, vision_config = _read_vision(published.vision, options)
    vision.prefix = "model.vision_model."
    try:
        tokenizer = AutoTokenizer.from_pretrained(published.text_folder)
    except Exception as error:  # the tokenizers library raises bare ones
        raise ConversionError(f"the text tokenizer can't be loaded: {one_line(error)}") from error
    config = read_mllm_config(published, vision_config, tokenizer.get_vocab())
    try:
        with torch.device("meta"):
            model = UniWeTokForCausalLM(config)
    except Exception as error:  # each language model has its own, also for tied embeddings not called embed_tokens
        model_type = config.text_config.model_type
        raise ConversionError(f"this {model_type} can't be the language model: {one_line(error)}") from error

    stride, patch = vision_config.stride, vision_config.stride * config.patch_size
    try:
        processor = UniWeTokProcessor(UniWeTokImageProcessor(stride=patch), tokenizer, None, config.patch_size, stride)
    except ValueError as error:
        raise ConversionError(str(error)) from error
    scheduler = BinaryFlowScheduler(shift=config.head_config.timestep_shift)
    default_size = min(1024, config.num_size_tokens * stride) // patch * patch
    pipeline = UniWeTokPipeline(processor, model, scheduler, default_size=default_size)

    head_rules = HEAD_RULES if config.head_config.hidden_act == "swiglu" else PLAIN_HEAD_RULES
    components = [
        vision,
        _component(published.head, head_rules, "image_head."),
        _component(published.projector, PROJECTOR_RULES, "model.projector."),
        _read_language(published.language, model),
    ]
    (folder / "mllm").mkdir()
    _write_model(folder / "mllm", model, components, options)
    generation_config = published.language_folder / "generation_config.json"
    if generation_config.is_file():
        shutil.copyfile(generation_config, folder / "mllm" / generation_config.name)
    processor.save_pretrained(folder / "processor")
    scheduler.save_pretrained(folder / "scheduler")
    pipeline.save_config(folder)  # model_index.json alone: the model has no weights in memory


def _convert_class_to_image(published: PublishedClassToImage, folder: Path, options: Options) -> None:
    # Here and not above, since diffusers takes a while to import.
    from ..pipelines import UniWeTokClassToImagePipeline
    from ..schedulers import BinaryFlowScheduler

    config = read_class_to_image_config(published.transformer)
    vision, vision_config = _read_vision(published.vision, options)
    if vision_config.num_bits != config.num_bits:
        raise ConversionError(
            f"{published.vision.source.label} has tokens of {vision_config.num_bits} bits, "
            f"{published.transformer.source.label} generates tokens of {config.num_bits}."
        )
    with torch.device("meta"):
        model, vision_model = UniWeTokClassToImageModel(config), UniWeTokModel(vision_config)
    image_processor = UniWeTokImageProcessor(stride=vision_config.stride)
    scheduler = BinaryFlowScheduler(shift=config.head_config.timestep_shift)
    pipeline = UniWeTokClassToImagePipeline(
        model,
        vision_model,
        image_processor,
        scheduler,
        id2label=read_labels(published.transformer, config.num_classes),
        default_guidance_scale=published_guidance(config),
    )
    rules = class_to_image_rules(config.head_config.has_attention)
    for name, part, component in (
        ("transformer", model, _component(published.transformer, rules, "")),
        ("vision_model", vision_model, vision),
    ):
        (folder / name).mkdir()
        _write_model(folder / name, part, [component], options)
    image_processor.save_pretrained(folder / "image_processor")
    scheduler.save_pretrained(folder / "scheduler")
    pipeline.save_config(folder)  # model_index.json alone: the models have no weights in memory


def _component(part: PublishedPart, rules: Rules, prefix: str) -> Component:
    return Component(part.source, {name: name for name in part.source.tensors}, rules, prefix)


def _read_vision(part: PublishedPart, options: Options) -> tuple[Component, UniWeTokConfig]:
    names = published_tensors(part.source.tensors, options.ignored_prefixes)
    shapes = {name: part.source.tensors[stored].shape for name, stored in names.items()}
    config = read_vision_config(part, shapes, options.num_attention_heads)
    return Component(part.source, names, VISION_RULES), config


def _read_language(part: PublishedPart, model: UniWeTokForCausalLM) -> Component:
    """The language model's tensors. With tied embeddings the text head is left out.

    Raises:
        ConversionError: when the config ties the embeddings, but the file holds two different ones.
    """
    text_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(model.config.text_config)]
    component = _component(part, language_rules(text_class.base_model_prefix), "")
    for tied, target in model.all_tied_weights_keys.items():
        name, twin = component.published_name(tied), component.published_name(target)
        if name not in component.names:
            continue
        if not _equal(part.source, name, twin):
            raise ConversionError(f"{part.settings_label} ties {name} to {twin}, but {part.source.label} has both.")
        del component.names[name]
    return component


def _equal(source: TensorSource, first: str, second: str | None) -> bool:
    info = source.tensors[first]
    if source.tensors.get(second) != info:
        return False
    chunks = row_chunks(info, 0, info.shape[0], CHUNK_BYTES)
    return all(torch.equal(source.read(first, *rows).double(), source.read(second, *rows).double()) for rows in chunks)


def _write_model(folder: Path, model: PreTrainedModel, components: Sequence[Component], options: Options) -> None:
    """Writes weights and config of `model`, which lives on the meta device, with the tensors of `components`."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for tied in model.all_tied_weights_keys:
        del shapes[tied]
    if problems := [problem for component in components for problem in find_problems(component, shapes)]:
        raise ConversionError("; ".join(problems) + ".")
    tensors = [tensor for component in components for tensor in _output_tensors(component, options.dtype)]
    if unmatched := sorted(set(shapes) - {tensor.name for tensor in tensors}):
        raise ConversionError(f"no rule gives {abbreviate(unmatched)}.")
    write_shards(folder, tensors, options.shard_bytes)

    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = _main_dtype(tensors)
    for name in config.sub_configs:
        getattr(config, name).dtype = config.dtype
    config.save_pretrained(folder)


def find_problems(component: Component, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is wrong with the tensors of a part: those missing, unknown, misshaped and no floats, by their published
    names.

    Args:
        component: the part.
        shapes: shape of each tensor of our model by native name.
    """
    unknown, misshaped, mistyped, found = [], [], [], set()
    for name, stored in component.names.items():
        natives = component.native_names(name)
        if not natives or any(native not in shapes for native in natives):
            unknown.append(name)
            continue
        found.update(natives)
        expected = shapes[natives[0]]
        if len(natives) > 1:
            expected = (sum(shapes[native][0] for native in natives), *expected[1:])
        shape, dtype = component.source.tensors[stored].shape, component.source.tensors[stored].dtype
        if not dtype.is_floating_point:
            mistyped.append(f"{name} is {str(dtype).removeprefix('torch.')}")
        if shape != expected:
            misshaped.append(f"{name} is {list(shape)} instead of {list(expected)}")
    absent = (component.published_name(native) for native in shapes if native not in found)
    missing = list(dict.fromkeys(name for name in absent if name is not None))
    label = component.source.label
    problems = [f"{label} lacks {abbreviate(missing)}"] if missing else []
    problems += [f"{label} has unknown tensors {abbreviate(unknown)}"] if unknown else []
    problems += [f"{label} has misshaped tensors: {abbreviate(misshaped)}"] if misshaped else []
    problems += [f"{label} has weights that are no floats: {abbreviate(mistyped)}"] if mistyped else []
    return problems


def _output_tensors(component: Component, dtype: torch.dtype | None) -> Iterator[OutputTensor]:
    """Our tensors of a part, in the order of its files; several are cut from one published tensor."""
    for name, stored in component.names.items():
        info = component.source.tensors[stored]
        natives = component.native_names(name)
        output_dtype = dtype or (info.dtype if info.dtype in WEIGHT_DTYPES else torch.bfloat16)
        num_rows = info.shape[0] // len(natives) if info.shape else 1
        for index, native in enumerate(natives):
            shape = (num_rows, *info.shape[1:]) if info.shape else ()
            start = index * num_rows
            chunks = partial(_read_chunks, component.source, stored, info, start, start + num_rows, output_dtype)
            yield OutputTensor(native, shape, output_dtype, chunks)


def _read_chunks(
    source: TensorSource, stored: str, info: TensorInfo, start: int, stop: int, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    for rows in row_chunks(info, start, stop, CHUNK_BYTES):
        yield source.read(stored, *rows).to(dtype)


def _main_dtype(tensors: Sequence[OutputTensor]) -> torch.dtype | None:
    """The floating-point dtype of most bytes; what `from_pretrained` loads all weights in by default."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors:
        if tensor.dtype.is_floating_point:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.num_bytes
    return max(sizes, key=sizes.get, default=None)


__all__ = ["convert_checkpoint", "find_problems"]
