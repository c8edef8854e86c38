# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Model cards: the templates `model_card.md` and `ADAPTER_CARD`, filled in from a model's configuration, the record of
its training and the results of its evaluations.

The last line of a filled-in card holds a digest of its text. While the two agree the text was not edited, and a
push may replace it; any other card is kept, see [`card_to_push`].
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import ImageProcessingMixin, ProcessorMixin

from .provenance import RECORD


TEMPLATE = Path(__file__).parent / "model_card.md"
PIPELINE_TAGS = {
    "image tokenizer": "image-feature-extraction",
    "language model": "image-text-to-text",
    "pipeline": "text-to-image",
    "class-to-image model": "unconditional-image-generation",
    "class-to-image pipeline": "unconditional-image-generation",
}
TAGS = {
    "image tokenizer": [],
    "language model": ["text-to-image", "image-editing"],
    "pipeline": ["text-to-image", "image-editing"],
    "class-to-image model": ["class-to-image"],
    "class-to-image pipeline": ["class-to-image"],
}
# The description in the generic cards of transformers and diffusers.
GENERIC = re.compile(r"This is the model card of .* has been automatically generated\.")
FILLED_IN = re.compile(r"<!-- Filled in by uniwetok-hf \((\w+)\)\..*-->\s*\Z")
Paths = str | os.PathLike | Iterable[str | os.PathLike]
ADAPTER_CARD = """\
---
{{ card_data }}
---

# {{ name }}

An adapter ({{ method }}{{ ", rank " ~ rank if rank }}) for a model of uniwetok-hf (`pip install uniwetok-hf`)
{%- if base_model %}, trained on {{ base_model }}{% endif %}.

```python
pipe.load_lora_weights("{{ model_id or "path/to/this/folder" }}", adapter_name="{{ adapter_name }}")
pipe.set_adapters("{{ adapter_name }}", 0.8)
```

`pipe` is a `UniWeTokPipeline` of the model that it was trained on. With the command line:
`uniwetok generate "..." --lora {{ model_id or "path/to/this/folder" }}`.
"""


def model_card(
    model,
    model_id: str | None = None,
    license: str = "apache-2.0",
    datasets: list[str] | None = None,
    results: Paths | None = None,
    **sections,
) -> ModelCard:
    """The card of a [`UniWeTokModel`], a [`UniWeTokForCausalLM`], a [`UniWeTokClassToImageModel`] or a pipeline.

    Args:
        model: sizes and numbers of parameters are read from it.
        model_id: its name on the Hub, used in the examples.
        license: an SPDX name.
        datasets: names of the training sets.
        results: folders that `uniwetok evaluate` wrote, or folders of such folders: their tables become the section
            `evaluation`, their scores the card's `model-index`.
        sections: texts of the template: `model_name`, `model_summary`, `training`, `evaluation`, `limitations`,
            `attributions`. The card says which of them are not given.

    Raises:
        ValueError: when `results` has none, damaged ones, or those of several models.
    """
    kind, numbers = _kind_and_numbers(model)
    name = sections.get("model_name") or (model_id or "UniWeTok model").split("/")[-1]
    tables, scores = (None, None) if results is None else read_results(results)
    data = ModelCardData(
        license=license,
        library_name="uniwetok-hf",
        pipeline_tag=PIPELINE_TAGS[kind],
        tags=["uniwetok", "image-tokenizer", *TAGS[kind]],
        datasets=datasets,
        model_name=name if scores else None,
        eval_results=scores or None,
    )
    texts = {"model_name": name, "evaluation": tables, **numbers, **sections}
    return _signed(ModelCard.from_template(data, TEMPLATE, kind=kind, model_id=model_id, **texts))


def _kind_and_numbers(model) -> tuple[str, dict]:
    """What the template calls a model or pipeline, and the numbers of its parts."""
    mllm, transformer, vision_model = getattr(model, "mllm", None), getattr(model, "transformer", None), None
    if mllm is not None or hasattr(model, "lm_head"):
        kind = "language model" if mllm is None else "pipeline"
        mllm = mllm or model
        vision_model = mllm.vision_model
        numbers = {
            "language_model_parameters": _count(mllm.model.language_model),
            "head_parameters": _count(mllm.image_head),
            "patch_size": mllm.config.patch_size,
        }
    elif transformer is not None or hasattr(model, "class_embedding"):
        kind = "class-to-image model" if transformer is None else "class-to-image pipeline"
        vision_model, transformer = getattr(model, "vision_model", None), transformer or model
        head = sum(parameter.numel() for parameter in transformer.image_head.parameters())
        numbers = {
            "transformer_parameters": f"{sum(one.numel() for one in transformer.parameters()) - head:,}",
            "head_parameters": f"{head:,}",
            "patch_size": transformer.config.patch_size,
            "num_classes": transformer.config.num_classes,
            "num_bits": transformer.config.num_bits,
            "stored_dtype": str(transformer.dtype).removeprefix("torch."),
        }
    else:
        kind, vision_model, numbers = "image tokenizer", model, {}
    if vision_model is not None:
        numbers |= {
            "stride": f"{vision_model.config.stride} x {vision_model.config.stride}",
            "num_bits": vision_model.config.num_bits,
            "encoder_parameters": _count(vision_model.encoder),
            "decoder_parameters": _count(vision_model.decoder),
            "stored_dtype": str(vision_model.dtype).removeprefix("torch."),
        }
    return kind, numbers


def adapter_card(
    config, model_id: str | None = None, license: str | None = None, datasets: list[str] | None = None
) -> ModelCard:
    """The card of an adapter, from its `peft` config; `license` and `datasets` as in [`model_card`]."""
    base_model = config.base_model_name_or_path or None
    data = ModelCardData(
        license=license,
        library_name="uniwetok-hf",
        tags=["uniwetok", "text-to-image", config.peft_type.value.lower()],
        datasets=datasets,
        base_model=base_model if base_model and base_model.count("/") == 1 else None,  # a name on the Hub
    )
    name = (model_id or "adapter").split("/")[-1]
    texts = {"name": name, "adapter_name": name.replace(".", "-"), "model_id": model_id, "base_model": base_model}
    texts |= {"method": config.peft_type.value, "rank": getattr(config, "r", None)}
    return _signed(ModelCard.from_template(data, template_str=ADAPTER_CARD, **texts))


def card_of(part, model_id: str) -> ModelCard | None:
    """The card for a push of `part` alone: of a model, a pipeline or the active adapter of a model; None of a
    processor, which shares the repository of its model."""
    if isinstance(part, ProcessorMixin | ImageProcessingMixin):
        return None
    if getattr(part, "_hf_peft_config_loaded", False):  # transformers saves the active adapter alone
        return adapter_card(part.peft_config[part.active_adapters()[0]], model_id)
    return model_card(part, model_id)


def card_to_push(filled_in: ModelCard, readme: Path | str | None, given: Iterable[str] = ()) -> ModelCard:
    """
    The card that a push writes where there is one already.

    Args:
        filled_in: the card of [`model_card`] or [`adapter_card`].
        readme: the existing card, if any. While its text was not edited, a generic one of the libraries is replaced
            except for its tags, and one of ours except for metadata that do not describe the model. Any other text
            stays as it is, and metadata that it lacks are added.
        given: fields of the metadata (`license`, `datasets`, `eval_results`) that the user passed: they replace those
            of the card.

    Raises:
        ValueError: when the metadata of `readme` can't be read.
    """
    if readme is None or not Path(readme).is_file():
        return filled_in
    try:
        card = ModelCard.load(readme)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{readme}: its metadata can't be read ({error}).") from error
    filled_in.data.tags += [tag for tag in card.data.get("tags", []) if tag not in filled_in.data.tags]
    if _is_generic(card):
        return filled_in
    given, last_line = set(given), FILLED_IN.search(card.text)
    if last_line is not None and last_line[1] == _digest(card.text[: last_line.start()]):
        card.text = filled_in.text
        # What describes the model: old scores are not those of new weights.
        given |= {"library_name", "pipeline_tag", "tags", "model_name", "eval_results"}
    elif "eval_results" in given:
        new = filled_in.data.eval_results or []
        old = [score for score in card.data.get("eval_results", []) if not any(map(score.is_equal_except_value, new))]
        filled_in.data.eval_results = old + new
    for name, value in vars(filled_in.data).items():
        if name in given or card.data.get(name) is None:
            card.data[name] = value
    return card


def _digest(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def _signed(card: ModelCard) -> ModelCard:
    note = f"Filled in by uniwetok-hf ({_digest(card.text)}). Once this text is changed, pushes leave it alone."
    card.text = f"{card.text.rstrip()}\n\n<!-- {note} -->\n"
    return card


def _is_generic(card: ModelCard) -> bool:
    """Whether the text is the libraries' template, in which only their own description was filled in."""
    description = GENERIC.search(card.text)
    if description is None:
        return False
    return _digest(ModelCard.from_template(card.data, model_description=description[0]).text) == _digest(card.text)


def _count(module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"


def read_results(paths: Paths) -> tuple[str, list[EvalResult]]:
    """
    Reads the results of `uniwetok evaluate`.

    Args:
        paths: folders with `results.json`, or folders of such folders.

    Returns:
        The tables in Markdown, and the scores of the model itself.

    Raises:
        ValueError: when there are none, damaged ones, or those of several models.
    """
    tables, scores, models = [], [], set()
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        folders = sorted(found.parent for found in Path(path).rglob("results.json"))
        if not folders:
            raise ValueError(f"`results` {path}: there is no results.json, as `uniwetok evaluate` writes it.")
        for folder in folders:
            try:
                models.add(json.loads((folder / "results.json").read_text(encoding="utf-8"))["model"])
                tables.append((folder / "results.md").read_text(encoding="utf-8").strip().replace("## ", "### ", 1))
                if (folder / "model-index.yaml").exists():
                    index = (folder / "model-index.yaml").read_text(encoding="utf-8").strip()
                    scores += ModelCard(f"---\n{index}\n---\n").data.eval_results or []
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ValueError(f"`results` {folder}: not as `uniwetok evaluate` writes them ({error}).") from error
    if len(models) > 1:
        raise ValueError(f"`results` are those of several models: {', '.join(sorted(models))}. Give those of one.")
    return "\n\n".join(tables), scores


def describe_training(folder: str | os.PathLike) -> str | None:
    """The section `training` of a card, from `training.json` in a model's folder; None when there is no such file, or
    it has no settings.

    Raises:
        ValueError: for a damaged file.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        settings, networks = record.get("training"), record.get("loss_models", [])
        if not settings:
            return None
        sources = [
            _shown(source["path"]) + (f" ({source['task']})" if source.get("task") else "")
            for source in settings["data"]
        ]
        rows = {
            "data": ", ".join(dict.fromkeys(sources)),
            "started from": _shown(settings.get("init_from") or settings.get("vision_model") or "new weights"),
            "steps": f"{settings['max_train_steps']:,}",
            "batch size": settings["batch_size"],
            "learning rate": f"{settings['learning_rate']:g}, {settings['lr_scheduler']}",
            "decay of the averaged weights": settings.get("ema_decay") or "not averaged",
            "frozen networks in losses": ", ".join(f"{n['name']} ({n['role']})" for n in networks) or "none",
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no training record ({type(error).__name__}: {error}).") from error
    head = f"The last stage, with uniwetok-hf; `{RECORD}` has all its settings.\n\n| setting | value |\n| --- | --- |"
    return "\n".join([head, *(f"| {name} | {value} |" for name, value in rows.items())])


def _shown(path: str) -> str:
    """A path as a card shows it: of an absolute one, the end."""
    return Path(path).name if Path(path).is_absolute() else path
