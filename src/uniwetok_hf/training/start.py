# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The start of a training of the language model: a new small model, any causal language model, or a finished
pipeline, whose patches may be made larger.

New tokens come in the published order (docs/method.md 3.1): those of the prompt format that the text tokenizer lacks,
`<|res_1|>`..., `<|query_1|>`.... Their embeddings are sampled around the mean of the others. Projector and head are
new, from a seed; the weights of the language model and of the image tokenizer stay as they are, bit by bit.
"""

import copy
import math
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..data.text import train_text_vocabulary
from ..embedded import embedded_names, embedded_path
from ..modeling.configuration_uniwetok_mllm import UniWeTokHeadConfig, UniWeTokMLLMConfig
from ..modeling.image_processing_uniwetok import UniWeTokImageProcessor
from ..modeling.modeling_uniwetok import UniWeTokModel
from ..modeling.modeling_uniwetok_head import UniWeTokBinaryHead
from ..modeling.modeling_uniwetok_mllm import UniWeTokForCausalLM, UniWeTokProjector
from ..modeling.processing_uniwetok import UniWeTokProcessor
from ..pipelines import UniWeTokPipeline
from ..schedulers import BinaryFlowScheduler
from .config import check_fields, field_named
from .run import seeded_weights


PROMPT_TOKENS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
LARGEST_SIDE = 4096  # pixels; as many size tokens there are at least (docs/method.md 3.1)
# Fields of a finished model that a further training may change.
CHANGEABLE = ("text_loss_weight", "image_loss_weight", "bit_flip_probability", "num_diffusion_draws")


def vision_subfolder(folder: str | os.PathLike) -> str:
    """Where an image tokenizer lies in `folder`, which may be that of a pipeline."""
    return "mllm" if os.path.isfile(os.path.join(folder, "model_index.json")) else ""


def start_pipeline(config, texts: Iterable[str] = ()) -> UniWeTokPipeline:
    """The pipeline that a training starts from, as its [`MLLMTrainingConfig`] says; `texts` are what a new text
    vocabulary is trained on.

    Raises:
        ValueError: when fields contradict each other, or what they name is not what it should be.
    """
    new_model = {name: getattr(config, name) for name in ("vision_model", "language_model", "text_model", "head")}
    if config.init_from is not None:
        if given := [name for name, value in new_model.items() if value]:
            raise ValueError(f"`{given[0]}` can't be given together with `init_from`, which brings its own.")
        pipeline = continued_pipeline(start_folder(config), config.mllm, config.seed)
    else:
        if config.vision_model is None or bool(config.language_model) == bool(config.text_model):
            raise ValueError(
                "Give `init_from`, a finished pipeline; or `vision_model`, the trained image tokenizer, and either "
                "`language_model`, a checkpoint, or `text_model`, the fields of a new one."
            )
        folder = start_folder(config)
        with field_named("vision_model"):
            vision_model = UniWeTokModel.from_pretrained(
                folder, subfolder=vision_subfolder(folder), dtype=torch.float32
            )
        num_size_tokens = config.num_size_tokens or LARGEST_SIDE // vision_model.config.stride
        fields = {"head": config.head, "mllm": config.mllm, "num_size_tokens": num_size_tokens, "seed": config.seed}
        if config.language_model:
            pipeline = pipeline_from_language_model(config.language_model, vision_model, **fields)
        else:
            pipeline = new_pipeline(vision_model, texts, config.text_model, vocab_size=config.vocab_size, **fields)
    return with_defaults(
        pipeline,
        input_size=config.input_size,
        temperature=config.temperature,
        default_size=config.resolution,
        default_num_inference_steps=config.num_inference_steps,
        default_guidance_scale=config.guidance_scale,
        default_image_guidance_scale=config.image_guidance_scale,
        default_negative_prompt=config.negative_prompt,
        default_describe_first=config.describe_first,
    )


def check_mllm(mllm: dict) -> None:
    """Checks those fields of `mllm` that a start computes with, or that change a finished model without its config's
    own checks.

    Raises:
        ValueError: naming the field.
    """
    for name in ("patch_size", "num_diffusion_draws"):
        if type(value := mllm.get(name, 1)) is not int or not 1 <= value <= 64:
            raise ValueError(f"`mllm.{name}` must be a whole number from 1 to 64, got {value!r}.")
    for name in ("text_loss_weight", "image_loss_weight", "bit_flip_probability"):
        value, most = mllm.get(name, 0.0), 1 if name == "bit_flip_probability" else math.inf
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise ValueError(f"`mllm.{name}` must be a number from 0 to {most}, got {value!r}.")


def start_folder(config) -> str:
    """The pipeline that a training goes on with, or else the image tokenizer around which it builds one."""
    if config.init_from is not None:
        return find_result(config.init_from, "pipeline")
    return find_result(config.vision_model, "model")


def find_result(path: str | os.PathLike, name: str) -> str:
    """The `name` folder of the finished training whose `output_dir` is `path`, or the folder of the embedded model of
    that name; `path` itself when it is neither, but a model or the name of one.

    Raises:
        ValueError: when that training is not finished, or made an adapter.
    """
    folder = Path(path)
    if (folder / name).is_dir():
        return str(folder / name)
    if not folder.exists() and str(path) in embedded_names():
        return str(embedded_path(str(path)))
    if (folder / "adapter").is_dir():
        raise ValueError(f"{path} is a training of an adapter: it has no `{name}`. Start from its `init_from`.")
    if (folder / "log.jsonl").exists():
        raise ValueError(f"{path} is a training that is not finished: it has no `{name}` yet.")
    return str(path)


def new_pipeline(
    vision_model: UniWeTokModel,
    texts: Iterable[str],
    text_model: dict,
    head: dict,
    mllm: dict,
    vocab_size: int = 2048,
    num_size_tokens: int = 128,
    seed: int = 0,
) -> UniWeTokPipeline:
    """A pipeline with a new language model around a trained image tokenizer.

    Args:
        vision_model: the image tokenizer.
        texts: what the text vocabulary is trained on.
        text_model: `model_type` and fields of the language model's config.
        head, mllm: fields of [`UniWeTokHeadConfig`] and [`UniWeTokMLLMConfig`].
        vocab_size: of the text, without special tokens.
        num_size_tokens: longest side of a picture, in tokens.
        seed: of the new weights.
    """
    patch_size = mllm.get("patch_size", 1)
    vocabulary = train_text_vocabulary(texts, vocab_size, num_size_tokens, patch_size)
    with field_named("text_model"):
        text_config = AutoConfig.for_model(
            vocab_size=len(vocabulary),
            pad_token_id=vocabulary.pad_token_id,
            eos_token_id=vocabulary.eos_token_id,
            **text_model,
        )
    config = _config(text_config, vision_model, vocabulary, head, mllm, num_size_tokens)
    with seeded_weights(seed), field_named("text_model`, `head`, `mllm"):
        model = UniWeTokForCausalLM(config)
    model.model.vision_model = vision_model
    return _pipeline(model, vocabulary)


def pipeline_from_language_model(
    language_model: str | os.PathLike,
    vision_model: UniWeTokModel,
    head: dict,
    mllm: dict,
    num_size_tokens: int = 128,
    seed: int = 0,
) -> UniWeTokPipeline:
    """A pipeline around a causal language model (Qwen3, Llama, ...) and a trained image tokenizer; arguments as in
    [`new_pipeline`].

    Args:
        language_model: folder or Hub name of a checkpoint with its text tokenizer.

    Raises:
        ValueError: when there is no text tokenizer, or the model computes its logits otherwise than by one matrix.
    """
    vocabulary = _load_vocabulary(language_model)
    with field_named("language_model"):
        model = AutoModelForCausalLM.from_pretrained(language_model, dtype=torch.float32)
    names = PROMPT_TOKENS + _picture_tokens(num_size_tokens, mllm.get("patch_size", 1))
    _check_language_model(model)
    _add_tokens(model, vocabulary, names, seed)
    if vocabulary.pad_token is None:
        vocabulary.pad_token = vocabulary.eos_token or "<|im_end|>"
    text_config = model.config
    text_config.pad_token_id = vocabulary.pad_token_id
    text_config.eos_token_id = vocabulary.convert_tokens_to_ids("<|im_end|>")

    config = _config(text_config, vision_model, vocabulary, head, mllm, num_size_tokens)
    with torch.device("meta"):  # the large parts are there already
        unified = UniWeTokForCausalLM(config)
    if type(unified.model.language_model) is not type(model.base_model):
        raise ValueError(f"`language_model` {language_model}: a {type(model).__name__} can't be taken apart.")
    with seeded_weights(seed):
        unified.image_head = UniWeTokBinaryHead._from_config(config.head_config)
        unified.model.projector = UniWeTokProjector(config).apply(unified._init_weights)
    unified.model.vision_model = vision_model
    unified.model.language_model, unified.lm_head = model.base_model, model.get_output_embeddings()
    unified.config.text_config = text_config
    _check_same_logits(unified, model)
    unified.generation_config = copy.deepcopy(model.generation_config)
    return _pipeline(unified, vocabulary)


def continued_pipeline(path: str | os.PathLike, mllm: dict, seed: int = 0) -> UniWeTokPipeline:
    """A finished pipeline, to be trained on; of `mllm`, weights of the losses and the like may change, and
    `patch_size` may grow.

    Raises:
        ValueError: for other fields.
    """
    if fixed := sorted(set(mllm) - {*CHANGEABLE, "patch_size"}):
        raise ValueError(
            f"`mllm`: {', '.join(fixed)} can't change after `init_from`, but {', '.join(CHANGEABLE)}, patch_size can."
        )
    with field_named("init_from"):
        found = UniWeTokPipeline.from_pretrained(path, dtype=torch.float32)
    # Made anew, it does not remember its folder either.
    pipeline = UniWeTokPipeline(found.processor, found.mllm, found.scheduler, **pipeline_defaults(found))
    _without_places(pipeline.mllm.config)
    for name in CHANGEABLE:
        if name in mllm:
            setattr(pipeline.mllm.config, name, mllm[name])
    if mllm.get("patch_size", pipeline.processor.patch_size) != pipeline.processor.patch_size:
        pipeline = raise_patch_size(pipeline, mllm["patch_size"], seed)
    return pipeline


def raise_patch_size(pipeline: UniWeTokPipeline, patch_size: int, seed: int = 0) -> UniWeTokPipeline:
    """A pipeline that generates `patch_size` x `patch_size` tokens per step, with the weights of one of smaller
    patches.

    Only the embeddings of the new query tokens are new; the model itself is changed, not copied. It needs a short
    training: a token is now predicted from further away, and together with more others.

    Raises:
        ValueError: when `patch_size` is not larger than before, or pictures of the pipeline's sizes don't fit it.
    """
    model, old = pipeline.mllm, pipeline.processor
    unit = old.stride * patch_size
    if patch_size <= old.patch_size:
        raise ValueError(f"`patch_size` must be larger than the {old.patch_size} there is, got {patch_size}.")
    size = old.image_processor.size or {}
    sides = {pipeline.config.default_size, *(side for side in dict(size).values() if side is not None)}
    if off := sorted(side for side in sides if side % unit):
        raise ValueError(
            f"`patch_size`={patch_size}: {off[0]} pixels, the pipeline's size, must be a multiple of {unit}."
        )
    vocabulary = copy.deepcopy(old.tokenizer)
    _add_tokens(model, vocabulary, _picture_tokens(0, patch_size), seed)
    model.config.patch_size = patch_size
    for name, value in _token_ids(vocabulary, model.config.num_size_tokens, patch_size).items():
        setattr(model.config, name, value)
    values = {name: value for name, value in old.image_processor.to_dict().items() if value is not None}
    image_processor = type(old.image_processor).from_dict(values | {"stride": unit})
    processor = UniWeTokProcessor(
        image_processor, vocabulary, chat_template=old.chat_template, patch_size=patch_size, stride=old.stride
    )
    return UniWeTokPipeline(processor, model, pipeline.scheduler, **pipeline_defaults(pipeline))


def with_defaults(
    pipeline: UniWeTokPipeline, input_size: dict | None = None, temperature: float | None = None, **defaults
) -> UniWeTokPipeline:
    """Sets those of the pipeline's defaults, the image processor's `size` and the scheduler's temperature that are not
    None."""
    if input_size is not None:
        old = pipeline.processor.image_processor
        values = {name: value for name, value in old.to_dict().items() if value is not None}
        with field_named("input_size"):
            pipeline.processor.image_processor = type(old).from_dict(values | {"size": input_size})
    if temperature is not None:
        pipeline.scheduler = BinaryFlowScheduler.from_config(pipeline.scheduler.config, temperature=temperature)
    defaults = {name: value for name, value in defaults.items() if value is not None}
    pipeline.processor.check_words([defaults.get("default_negative_prompt", "")], "negative_prompt")
    pipeline.register_to_config(**pipeline_defaults(pipeline) | defaults)
    unit = pipeline.processor.stride * pipeline.processor.patch_size
    if pipeline.config.default_size % unit:
        raise ValueError(f"`resolution` must be a multiple of {unit} pixels, got {pipeline.config.default_size}.")
    return pipeline


def pipeline_defaults(pipeline: UniWeTokPipeline) -> dict:
    return {name: value for name, value in pipeline.config.items() if name.startswith("default_")}


def _config(text_config, vision_model, vocabulary, head: dict, mllm: dict, num_size_tokens: int) -> UniWeTokMLLMConfig:
    check_fields("head", head, UniWeTokHeadConfig)
    check_fields("mllm", mllm, UniWeTokMLLMConfig)
    with field_named("head"):
        bits = vision_model.config.num_bits
        head_config = UniWeTokHeadConfig(num_bits=bits, condition_size=text_config.hidden_size, **head)
    with field_named("mllm"):
        config = UniWeTokMLLMConfig(
            text_config=text_config,
            vision_config=vision_model.config,
            head_config=head_config,
            num_size_tokens=num_size_tokens,
            **_token_ids(vocabulary, num_size_tokens, mllm.get("patch_size", 1)),
            **mllm,
        )
    return _without_places(config)


def _without_places(config: UniWeTokMLLMConfig) -> UniWeTokMLLMConfig:
    """Parts remember the folder that they were loaded from, which would be saved with the result, and published."""
    for part in (config.text_config, config.vision_config, config.head_config):
        part.name_or_path = ""
    return config


def _pipeline(model: UniWeTokForCausalLM, vocabulary) -> UniWeTokPipeline:
    model.generation_config.eos_token_id = vocabulary.convert_tokens_to_ids("<|im_end|>")
    model.end_texts_at_pictures()
    model.generation_config.pad_token_id = vocabulary.pad_token_id
    stride, patch_size = model.config.vision_config.stride, model.config.patch_size
    image_processor = UniWeTokImageProcessor(stride=stride * patch_size)
    processor = UniWeTokProcessor(image_processor, vocabulary, patch_size=patch_size, stride=stride)
    scheduler = BinaryFlowScheduler(shift=model.config.head_config.timestep_shift)  # it samples as it is trained
    return UniWeTokPipeline(processor, model, scheduler)


def _picture_tokens(num_size_tokens: int, patch_size: int) -> list[str]:
    sizes = [f"<|res_{index + 1}|>" for index in range(num_size_tokens)]
    return sizes + [f"<|query_{index + 1}|>" for index in range(patch_size**2 - 1)]


def _token_ids(vocabulary, num_size_tokens: int, patch_size: int) -> dict[str, int]:
    """The ids that the model's config wants.

    Raises:
        ValueError: when size or query tokens don't follow each other, which the model relies on.
    """
    ids = vocabulary.get_vocab()
    for prefix, count in (("res", num_size_tokens), ("query", patch_size**2 - 1)):
        found = [ids[f"<|{prefix}_{index + 1}|>"] for index in range(count)]
        if found != list(range(found[0], found[0] + count) if found else []):
            raise ValueError(f"The text vocabulary has `<|{prefix}_n|>` scattered; their ids must follow each other.")
    return {
        "image_token_id": ids["<|image_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "size_token_id": ids["<|res_1|>"],
        "query_token_id": ids.get("<|query_1|>", len(ids)),
    }


def _add_tokens(model: nn.Module, vocabulary, names: list[str], seed: int) -> None:
    """Adds those special tokens that the vocabulary lacks, and rows of embeddings for them."""
    before = max(vocabulary.get_vocab().values()) + 1
    known = vocabulary.get_vocab()
    new = [AddedToken(name, special=True, normalized=False) for name in names if name not in known]
    vocabulary.add_tokens(new, special_tokens=True)
    if new:
        with seeded_weights(seed):
            # Rows beyond the vocabulary are padding that was never trained: new tokens start from the mean instead.
            model.resize_token_embeddings(min(before, model.get_input_embeddings().num_embeddings))
            model.resize_token_embeddings(before + len(new))


def _load_vocabulary(language_model: str | os.PathLike):
    """
    Raises:
        ValueError: when there is no text tokenizer. Of some models the library then makes up an empty one.
    """
    try:
        vocabulary = AutoTokenizer.from_pretrained(language_model)
        is_empty = not vocabulary("text", add_special_tokens=False)["input_ids"]
    except (OSError, ValueError) as error:
        raise ValueError(f"`language_model` {language_model} has no text tokenizer that loads ({error}).") from None
    if is_empty:
        raise ValueError(f"`language_model` {language_model} has no text tokenizer.")
    return vocabulary


def _check_language_model(model: nn.Module) -> None:
    """
    Raises:
        ValueError: for an output layer with biases, or one tied to embeddings that are not called `embed_tokens`.
    """
    name, output = type(model).__name__, model.get_output_embeddings()
    if not isinstance(output, nn.Linear) or output.bias is not None:
        raise ValueError(f"`language_model`: the output layer of {name} must be linear, without biases.")
    is_tied = output.weight is model.get_input_embeddings().weight
    if is_tied and model.get_input_embeddings() is not getattr(model.base_model, "embed_tokens", None):
        raise ValueError(
            f"`language_model`: {name} ties its output to embeddings that are not called `embed_tokens`, under which "
            "the unified model saves them."
        )


@torch.no_grad()
def _check_same_logits(unified: UniWeTokForCausalLM, model: nn.Module) -> None:
    """
    Raises:
        ValueError: when a text's logits differ: the language model scales or caps them in a way of its own.
    """
    ids = torch.arange(8)[None] % model.get_input_embeddings().num_embeddings
    ours, theirs = unified.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item()):
        raise ValueError(f"`language_model`: {type(model).__name__} makes its logits in a way of its own.")
