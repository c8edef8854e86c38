"""Finds, checks and loads the checkpoint that `--model` names: the embedded one, a folder, or a Hub id.

Files are checked before they are loaded: from an incomplete checkpoint the libraries load random weights, or raise
errors of many lines.
"""

import contextlib
import re
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from uniwetok_hf.embedded import DEFAULT as EMBEDDED
from uniwetok_hf.files import read_json

from .common import CommandError, hub_bars, one_line, resolve_device, user_errors


PIPELINES = {
    "UniWeTokPipeline": "pipeline",
    "UniWeTokEditPipeline": "pipeline",
    "UniWeTokClassToImagePipeline": "classes",
}
KINDS = {
    "pipeline": "a pipeline folder (model_index.json, mllm/, processor/, scheduler/)",
    "classes": "a class-to-image pipeline (model_index.json, transformer/, vision_model/)",
    "mllm": "a language model without its processor (UniWeTokForCausalLM)",
    "vision": "an image tokenizer (UniWeTokModel)",
}
# Files of the published checkpoints, which must be converted first.
PUBLISHED_FILES = ("ae_config.json", "ae.safetensors", "vision_head_config.json", "projector.safetensors")
SMALL_FILES = ["*.json", "*.jinja", "*.txt"]
LARGE_CHECKPOINT = 2e9  # bytes
CLASS_FILES = ("image_processor/preprocessor_config.json", "scheduler/scheduler_config.json")


@dataclass(frozen=True)
class Checkpoint:
    """The folder of a checkpoint, the name that the user gave, and which of `KINDS` it is."""

    folder: Path
    name: str
    kind: str

    @property
    def model_folder(self) -> Path:
        """Where the weights are."""
        return self.folder / {"pipeline": "mllm", "classes": "transformer"}.get(self.kind, ".")


def find_checkpoint(name: str | Checkpoint | None, kinds: Collection[str] = tuple(KINDS)) -> Checkpoint:
    """The checkpoint called `name`, by default the embedded one; one that was found already is returned as it is.

    Raises:
        CommandError: when there is none, or it is of none of `kinds`.
    """
    if isinstance(name, Checkpoint):
        return name
    if name is None or name == EMBEDDED:
        from uniwetok_hf import embedded_path

        with user_errors(prefix="the embedded checkpoint is not there: "):
            return Checkpoint(embedded_path(EMBEDDED), EMBEDDED, "pipeline")
    if Path(name).exists():
        return Checkpoint(Path(name), Path(name).resolve().name, _kind_of(Path(name), name, kinds))
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return _fetch(name, kinds)
    raise CommandError(f"{name} is neither a folder nor a Hub id like org/name")


def _kind_of(folder: Path, name: str, kinds: Collection[str]) -> str:
    """Which of `KINDS` a folder holds, from its small files. It must be one of `kinds`."""
    if not folder.is_dir():
        raise CommandError(f"{name} is a file; --model takes a folder or a Hub id (`uniwetok convert` makes folders)")
    kind = model_type = None
    if (folder / "model_index.json").is_file():
        found = _read_json(folder / "model_index.json").get("_class_name")
        if (kind := PIPELINES.get(str(found))) is None:
            raise CommandError(f"{name} holds a pipeline of the class {found}, expected {' or '.join(PIPELINES)}")
    elif (folder / "config.json").is_file():
        model_type = _read_json(folder / "config.json").get("model_type")
        kind = {"uniwetok": "vision", "uniwetok_mllm": "mllm"}.get(model_type)
    if kind is None:
        raise CommandError(f"{name} {_explain_no_checkpoint(folder, name, model_type)}")
    if kind not in kinds:
        wanted = " or ".join(KINDS[kind] for kind in kinds)
        raise CommandError(f"{name} holds {KINDS[kind]}, but this command needs {wanted}")
    return kind


def _explain_no_checkpoint(folder: Path, name: str, model_type: str | None) -> str:
    """Why a folder holds none of `KINDS`, and what to do: the rest of an error message."""
    if (folder / "log.jsonl").is_file():
        results = [result for result in ("pipeline", "model", "adapter") if (folder / result).is_dir()]
        outcome = f"its result is {name}/{results[0]}" if results else "it is not finished"
        return f"is the folder of a training run: {outcome}"
    if any((folder / published).exists() for published in PUBLISHED_FILES):
        return f"is in the published layout: convert it first with `uniwetok convert {name} OUT`"
    if (folder / "config.json").is_file():
        return f"holds a model of the type {model_type!r}, expected a UniWeTok pipeline or tokenizer"
    names = sorted(path.name for path in folder.iterdir()) or ["nothing"]
    found = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    return (
        "holds no checkpoint: expected model_index.json (a pipeline) or config.json (an image tokenizer), "
        f"found {found}"
    )


def _read_json(path: Path) -> dict:
    with user_errors():
        return read_json(path)


def _fetch(name: str, kinds: Collection[str]) -> Checkpoint:
    """Downloads a checkpoint from the Hub, or finds it in the cache: first the small files, which tell its kind."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        with hub_bars():
            folder = Path(snapshot_download(name, allow_patterns=SMALL_FILES))
            checkpoint = Checkpoint(folder, name, _kind_of(folder, name, kinds))
            # The name of the folder in the cache is the commit: a push in between changes nothing.
            snapshot_download(name, revision=folder.name, allow_patterns=[*SMALL_FILES, "*.safetensors"])
    except GatedRepoError as error:
        raise CommandError(f"{name} is a gated repository: ask for access on its page on the Hub") from error
    except RepositoryNotFoundError as error:
        raise CommandError(
            f"{name} is neither a local folder nor a repository on the Hub that you can read; for a private one, log "
            "in with `hf auth login` or set HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CommandError(
            f"{name} is not a local folder; as a Hub id, it is not in the cache and the Hub can't be reached"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CommandError(f"{name} can't be downloaded from the Hub: {one_line(error)}") from error
    return checkpoint


def check_weights(folder: Path) -> None:
    """Checks that the weight files of a model folder are complete, by opening each.

    Raises:
        CommandError: naming the file.
    """
    from safetensors import SafetensorError, safe_open

    _require(folder, "config.json")
    _read_json(folder / "config.json")
    names, index = ["model.safetensors"], folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / names[0]).is_file():
        with user_errors(KeyError, AttributeError, prefix=f"{index} is not an index of weights: "):
            names = sorted(set(_read_json(index)["weight_map"].values()))
    _require(folder, *names)
    for name in names:
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except SafetensorError as error:
            with open(folder / name, "rb") as file:
                is_pointer = file.read(40).startswith(b"version https://git-lfs")
            why = "a Git LFS pointer: run `git lfs pull`" if is_pointer else f"damaged or cut off ({one_line(error)})"
            raise CommandError(f"{folder / name} is {why}") from error


def _require(folder: Path, *files: str) -> None:
    for name in files:
        if not (folder / name).is_file():
            raise CommandError(f"{folder} is an incomplete checkpoint: {name} is missing")


@contextlib.contextmanager
def quiet_transformers(with_bar: bool = False) -> Iterator[None]:
    """Turns off what transformers logs below errors and, unless `with_bar`, its progress bar of loading."""
    from transformers.utils import logging

    had_bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    if not with_bar:
        logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _loading(checkpoint: Checkpoint, part: str = "") -> Iterator[None]:
    """Turns errors into one line that names the part, a folder or file of the checkpoint, and silences the libraries;
    on terminals, large checkpoints show a progress bar."""
    size = sum(path.stat().st_size for path in checkpoint.model_folder.glob("*.safetensors"))
    try:
        with quiet_transformers(with_bar=size >= LARGE_CHECKPOINT and sys.stderr.isatty()):
            yield
    except MemoryError:
        raise
    except Exception as error:  # of a damaged file the libraries raise nearly anything
        kind = "" if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: "
        raise CommandError(f"{checkpoint.folder / part} can't be loaded: {kind}{one_line(error)}") from error


def count_parameters(model_class: type, folder: Path) -> int:
    """Of the model that the config of a folder describes. It is not made."""
    import torch

    config = model_class.config_class.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_class(config).parameters())


def _load_model(model_class: type, checkpoint: Checkpoint, device: str, folder: Path | None = None):
    """The model in eval mode, that of `model_folder` or of another folder of the checkpoint: in float32 on CPUs, where
    bfloat16 is slow, elsewhere in the dtype of the checkpoint."""
    import torch

    target, folder = resolve_device(device), folder or checkpoint.model_folder
    check_weights(folder)
    dtype = torch.float32 if target.type == "cpu" else "auto"
    part = folder.relative_to(checkpoint.folder).as_posix().strip(".")
    with _loading(checkpoint, part):
        num_parameters = count_parameters(model_class, folder)
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    # Four bits or more hold a parameter. A config that lost a part has the defaults of the paper's size in its place,
    # for which random weights would be made, tens of GB of them, before anything is found to be missing.
    if num_parameters > 2 * num_bytes:
        raise CommandError(
            f"{folder} is an incomplete checkpoint: by its config.json the model has {num_parameters:,} parameters, "
            f"its weight files {num_bytes:,} bytes"
        )
    with _loading(checkpoint, part):
        model, report = model_class.from_pretrained(
            folder,
            dtype=dtype,
            output_loading_info=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # refused below: the library's own error says nothing of them
        )
    if lacking := sorted(report["missing_keys"]):
        raise CommandError(
            f"{folder} is an incomplete checkpoint: {len(lacking)} tensors are missing, the first is {lacking[0]}"
        )
    if wrong := sorted(report["mismatched_keys"]):
        name, found, wanted = wrong[0]
        raise CommandError(
            f"{folder} holds {name} of the shape {list(found)}; by its config.json it must be {list(wanted)}"
        )
    model.config._name_or_path = checkpoint.name  # goes into saved codes, where a local path would be private
    return model.to(target).eval()


def load_vision_model(name: str | Checkpoint | None, device: str):
    """The image tokenizer of any checkpoint, as a `UniWeTokModel`."""
    from uniwetok_hf import UniWeTokModel

    checkpoint = find_checkpoint(name)
    folder = checkpoint.folder / "vision_model" if checkpoint.kind == "classes" else None
    return _load_model(UniWeTokModel, checkpoint, device, folder)


def load_language_model(name: str | Checkpoint | None, device: str):
    """The language model of a pipeline folder and its processor."""
    return _load_parts(find_checkpoint(name, ("pipeline",)), device)


def _load_parts(checkpoint: Checkpoint, device: str):
    from uniwetok_hf import UniWeTokForCausalLM, UniWeTokProcessor

    _require(checkpoint.folder, "processor/processor_config.json")
    mllm = _load_model(UniWeTokForCausalLM, checkpoint, device)
    with _loading(checkpoint, "processor"):
        processor = UniWeTokProcessor.from_pretrained(checkpoint.folder / "processor", local_files_only=True)
    return mllm, processor


def check_pipeline(checkpoint: Checkpoint) -> None:
    """Checks that the parts of a pipeline folder other than the weights are there.

    Raises:
        CommandError: naming the file that is missing.
    """
    if checkpoint.kind == "classes":
        _require(checkpoint.folder, *CLASS_FILES)
        check_weights(checkpoint.folder / "vision_model")
    else:
        _require(checkpoint.folder, "processor/processor_config.json", "scheduler/scheduler_config.json")


def describe_checkpoint(checkpoint: Checkpoint):
    """The model or the pipeline of a checkpoint without its weights, for the model card."""
    import torch

    from uniwetok_hf import (
        BinaryFlowScheduler,
        UniWeTokForCausalLM,
        UniWeTokModel,
        UniWeTokPipeline,
        UniWeTokProcessor,
    )

    if checkpoint.kind == "classes":
        return _describe_class_pipeline(checkpoint)
    model_class = UniWeTokModel if checkpoint.kind == "vision" else UniWeTokForCausalLM
    with _loading(checkpoint):
        config = model_class.config_class.from_pretrained(checkpoint.model_folder, local_files_only=True)
        with torch.device("meta"):
            model = model_class._from_config(config, dtype=config.dtype or torch.float32)
        if checkpoint.kind != "pipeline":
            return model
        processor = UniWeTokProcessor.from_pretrained(checkpoint.folder / "processor", local_files_only=True)
        return UniWeTokPipeline(processor, model, BinaryFlowScheduler())


def _describe_class_pipeline(checkpoint: Checkpoint):
    import torch

    from uniwetok_hf import (
        BinaryFlowScheduler,
        UniWeTokClassToImageModel,
        UniWeTokClassToImagePipeline,
        UniWeTokImageProcessor,
        UniWeTokModel,
    )

    models = []
    with _loading(checkpoint):
        for model_class, folder in ((UniWeTokClassToImageModel, "transformer"), (UniWeTokModel, "vision_model")):
            config = model_class.config_class.from_pretrained(checkpoint.folder / folder, local_files_only=True)
            with torch.device("meta"):
                models.append(model_class._from_config(config, dtype=config.dtype or torch.float32))
        return UniWeTokClassToImagePipeline(*models, UniWeTokImageProcessor(), BinaryFlowScheduler())


def load_class_pipeline(name: str | Checkpoint | None, device: str):
    """The class-to-image pipeline of a folder, without its progress bar."""
    from uniwetok_hf import (
        BinaryFlowScheduler,
        UniWeTokClassToImageModel,
        UniWeTokClassToImagePipeline,
        UniWeTokImageProcessor,
        UniWeTokModel,
    )

    checkpoint = find_checkpoint(name, ("classes",))
    _require(checkpoint.folder, *CLASS_FILES)
    transformer = _load_model(UniWeTokClassToImageModel, checkpoint, device)
    vision_model = _load_model(UniWeTokModel, checkpoint, device, checkpoint.folder / "vision_model")
    with _loading(checkpoint, "image_processor"):
        path = checkpoint.folder / "image_processor"
        image_processor = UniWeTokImageProcessor.from_pretrained(path, local_files_only=True)
    with _loading(checkpoint, "scheduler"):
        scheduler = BinaryFlowScheduler.from_pretrained(checkpoint.folder / "scheduler", local_files_only=True)
    with _loading(checkpoint, "model_index.json"):
        settings = UniWeTokClassToImagePipeline.load_config(checkpoint.folder)
        options = {key: value for key, value in settings.items() if key.startswith("default_") or key == "id2label"}
        pipeline = UniWeTokClassToImagePipeline(transformer, vision_model, image_processor, scheduler, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_pipeline(name: str | Checkpoint | None, device: str):
    """The text-to-image pipeline of a pipeline folder, without its progress bar."""
    from uniwetok_hf import BinaryFlowScheduler, UniWeTokPipeline

    checkpoint = find_checkpoint(name, ("pipeline",))
    _require(checkpoint.folder, "scheduler/scheduler_config.json")
    mllm, processor = _load_parts(checkpoint, device)
    # By hand: `UniWeTokPipeline.from_pretrained` gives missing weights random values, and `_load_model` refuses them.
    with _loading(checkpoint, "scheduler"):
        scheduler = BinaryFlowScheduler.from_pretrained(checkpoint.folder / "scheduler", local_files_only=True)
    with _loading(checkpoint, "model_index.json"):
        settings = UniWeTokPipeline.load_config(checkpoint.folder)
        defaults = {key: value for key, value in settings.items() if key.startswith("default_")}
        pipeline = UniWeTokPipeline(processor, mllm, scheduler, **defaults)
    pipeline.register_to_config(_name_or_path=str(checkpoint.folder))  # as `from_pretrained` does
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
