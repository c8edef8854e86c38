# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The published layouts: which file of a folder holds what (docs/method.md 1.3)."""

from dataclasses import dataclass
from pathlib import Path

from .tensors import PICKLE_SUFFIXES, ConversionError, TensorSource, TensorsWithin, open_tensors, read_json


WEIGHT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)


@dataclass
class PublishedPart:
    """One part of a published model: its tensors, and the settings from the JSON file beside them, if any."""

    source: TensorSource
    settings: dict | None = None
    settings_label: str | None = None


@dataclass
class PublishedVision:
    """A published image tokenizer."""

    vision: PublishedPart


@dataclass
class PublishedTextToImage:
    """A published text-to-image model: four parts, the folders of the language model's config and of the text
    tokenizer."""

    vision: PublishedPart
    head: PublishedPart
    projector: PublishedPart
    language: PublishedPart
    language_folder: Path
    text_folder: Path


@dataclass
class PublishedClassToImage:
    """A published class-to-image model, and the image tokenizer of its codes."""

    transformer: PublishedPart
    vision: PublishedPart


@dataclass(frozen=True)
class TextToImageLayout:
    """Paths of the parts: stems of weight files, and JSON files; `signs` are paths that tell the layout."""

    signs: tuple[str, ...]
    stems: dict[str, str]
    settings: dict[str, str]
    optional_settings: tuple[str, ...]
    language_folder: str
    text_folder: str


ORIGINAL_LAYOUT = TextToImageLayout(
    signs=("vision_head.safetensors", "vision_head_config.json", "projector.safetensors"),
    stems={"vision": "ae", "head": "vision_head", "projector": "projector", "language": "model"},
    settings={"vision": "ae_config.json", "head": "vision_head_config.json", "language": "config.json"},
    optional_settings=("vision",),
    language_folder=".",
    text_folder=".",
)
DIFFUSERS_LAYOUT = TextToImageLayout(
    signs=("diffusion_head", "text_encoder", "projector"),
    stems={
        "vision": "autoencoder/diffusion_pytorch_model",
        "head": "diffusion_head/diffusion_pytorch_model",
        "projector": "projector/diffusion_pytorch_model",
        "language": "text_encoder/model",
    },
    settings={
        "vision": "autoencoder/config.json",
        "head": "diffusion_head/config.json",
        "projector": "projector/config.json",
        "language": "text_encoder/config.json",
    },
    optional_settings=("vision", "projector"),
    language_folder="text_encoder",
    text_folder="tokenizer",
)
_TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
_VISION_STEMS = ("ae", "diffusion_pytorch_model")
_VISION_SETTINGS = ("ae_config.json", "config.json")


CLASS_TO_IMAGE_SIGN = "cls_embedding.weight"  # the name of a tensor
CLASS_TO_IMAGE_STEMS = ("model", "transformer/diffusion_pytorch_model", "transformer/model")
CLASS_TO_IMAGE_VISION_STEMS = (
    "ae",
    "autoencoder/diffusion_pytorch_model",
    "vae/diffusion_pytorch_model",
    "autoencoder/ae",
    "vae/ae",
)
INSIDE = "vae."  # how the names of an image tokenizer start that is in the file of a class-to-image model


def find_published(src: Path) -> PublishedVision | PublishedTextToImage | PublishedClassToImage:
    """Finds out what `src`, a file or a folder, is.

    Raises:
        ConversionError: when it is nothing that was published, and when parts are missing or damaged.
    """
    if src.is_file():
        if src.suffix not in WEIGHT_SUFFIXES:
            raise ConversionError(f"it is no weight file; accepted are {', '.join(WEIGHT_SUFFIXES)} and folders.")
        return _published_class_to_image(src, src.parent) or _published_vision(src)
    if not src.is_dir():
        raise ConversionError("there is no such file or folder.")
    _refuse_converted(src)
    for layout in (DIFFUSERS_LAYOUT, ORIGINAL_LAYOUT):
        signs = [sign for sign in layout.signs if (src / sign).exists()]
        if signs:
            return _published_text_to_image(src, layout, signs[0])
    for file in filter(None, (_find_weights(src, stem) for stem in CLASS_TO_IMAGE_STEMS)):
        if published := _published_class_to_image(file, src):
            return published
    files = [file for file in _weight_files(src) if file.stem != "ae"]
    if len(files) == 1 and (published := _published_class_to_image(files[0], src)):
        return published
    return _published_vision(_find_vision_file(src))


def _refuse_converted(src: Path) -> None:
    if (src / "model_index.json").is_file() and (src / "mllm").is_dir():
        raise ConversionError("it is a converted pipeline already; load it with UniWeTokPipeline.from_pretrained.")
    if (src / "config.json").is_file():
        model_type = read_json(src / "config.json").get("model_type")
        if str(model_type).startswith("uniwetok"):
            raise ConversionError(f"it is a converted model already ({model_type}); load it with from_pretrained.")


def _published_text_to_image(src: Path, layout: TextToImageLayout, sign: str) -> PublishedTextToImage:
    files = {part: _find_weights(src, stem) for part, stem in layout.stems.items()}
    missing = [f"{layout.stems[part]}.safetensors" for part, file in files.items() if file is None]
    for part, name in layout.settings.items():
        if part not in layout.optional_settings and not (src / name).is_file():
            missing.append(name)
    if not any((src / layout.text_folder / name).is_file() for name in _TEXT_FILES):
        missing.append(str(Path(layout.text_folder, "tokenizer.json")))
    if missing:
        raise ConversionError(f"it is a text-to-image folder, since it has {sign}, but lacks {', '.join(missing)}.")
    parts = {}
    for part, file in files.items():
        parts[part] = PublishedPart(open_tensors(file, str(file.relative_to(src))))
        settings = src / layout.settings[part] if part in layout.settings else None
        if settings is not None and settings.is_file():
            parts[part].settings, parts[part].settings_label = read_json(settings), layout.settings[part]
    return PublishedTextToImage(
        **parts, language_folder=src / layout.language_folder, text_folder=src / layout.text_folder
    )


def _find_weights(folder: Path, stem: str) -> Path | None:
    """The file of the weights called `stem`, or the index of its shards."""
    names = [f"{stem}.safetensors.index.json", *(f"{stem}{suffix}" for suffix in WEIGHT_SUFFIXES)]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _weight_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in WEIGHT_SUFFIXES)


def _published_class_to_image(file: Path, folder: Path) -> PublishedClassToImage | None:
    """The class-to-image model in `file`, None when it holds none. Its image tokenizer is a file of its own in
    `folder`, or else in the same file.

    Raises:
        ConversionError: when there is no image tokenizer.
    """
    source = open_tensors(file, str(file.relative_to(folder)))
    if CLASS_TO_IMAGE_SIGN not in source.tensors:
        return None
    transformer = PublishedPart(TensorsWithin(source, without=INSIDE))
    settings = file.parent / "config.json"
    if settings.is_file():
        transformer.settings = read_json(settings)
        transformer.settings_label = str(settings.relative_to(folder))
    files = filter(None, (_find_weights(folder, stem) for stem in CLASS_TO_IMAGE_VISION_STEMS))
    if vision_file := next(files, None):
        return PublishedClassToImage(transformer, _published_vision(vision_file).vision)
    vision = TensorsWithin(source, INSIDE)
    if not vision.tensors:
        raise ConversionError(
            f"it is a class-to-image model, since {source.label} has {CLASS_TO_IMAGE_SIGN}, but without an image "
            f"tokenizer, neither as {INSIDE}* in that file nor as ae.safetensors beside it."
        )
    return PublishedClassToImage(transformer, PublishedPart(vision))


def _find_vision_file(folder: Path) -> Path:
    for stem in _VISION_STEMS:
        if file := _find_weights(folder, stem):
            return file
    files = _weight_files(folder)
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files)
        raise ConversionError(f"it holds several weight files ({names}) and none is called ae; give one of them.")
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    raise ConversionError(
        f"it holds no published model. Looked for an image tokenizer (ae.safetensors, or one file of "
        f"{', '.join(WEIGHT_SUFFIXES)}), for a text-to-image model ({', '.join(ORIGINAL_LAYOUT.signs)}, or the "
        f"folders autoencoder, {', '.join(DIFFUSERS_LAYOUT.signs)}) and for a class-to-image model "
        f"({', '.join(CLASS_TO_IMAGE_STEMS)}); found {found}."
    )


def _published_vision(file: Path) -> PublishedVision:
    part = PublishedPart(open_tensors(file, file.name))
    for name in _VISION_SETTINGS:
        if (file.parent / name).is_file():
            settings = read_json(file.parent / name)
            if name == "ae_config.json" or "ddconfig" in settings:  # another model may have left a config.json here
                part.settings, part.settings_label = settings, name
                break
    return PublishedVision(part)


__all__ = ["PublishedClassToImage", "PublishedPart", "PublishedTextToImage", "PublishedVision", "find_published"]
