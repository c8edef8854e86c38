# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What a training of the language model would take, before it takes it: memory of a GPU by part, tokens a step, data
read a day, hours.

Nothing is loaded: the model is made on the meta device, and what a layer keeps for the backward pass is counted there,
tensor by tensor, for the rows of the config. Attention counts as flash and flex attention keep it: its input, its
output and one number a position. It is an estimate: what kernels need besides, and what the allocator leaves unused,
comes on top.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..files import is_local_name
from ..modeling.configuration_uniwetok import UniWeTokConfig
from ..modeling.configuration_uniwetok_mllm import UniWeTokHeadConfig, UniWeTokMLLMConfig
from ..modeling.modeling_uniwetok_mllm import UniWeTokForCausalLM
from .config import field_named
from .lora import add_lora
from .run import choose_parameters
from .settings_mllm import MLLMTrainingConfig
from .start import LARGEST_SIDE, PROMPT_TOKENS, find_result, vision_subfolder
from .train_mllm import frozen_patterns


GIB = 2**30
BYTES = 4  # of weights, gradients, each of Adam's two moments, averages: float32
COMPUTED = 2  # of activations: bfloat16
TEXT_SHARE = 0.1  # of a row's tokens that are text to be predicted; the others are counted as image tokens to be drawn
ATTENTION = "planned"


@dataclass
class Plan:
    """
    memory: GiB of a GPU by part, with the weights on every GPU (`copies`, DDP) and, where the trainer can, spread over
        all (`shards`, FSDP).
    parameters, trained: how many there are of the model, and how many train, those of losses included.
    steps: of the training.
    """

    memory: dict[str, dict[str, float]]
    parameters: int
    trained: int
    steps: int

    def total(self, kind: str) -> float:
        """GiB of a GPU; `kind` is copies or shards."""
        return sum(self.memory[kind].values())


@dataclass
class TokenPlan(Plan):
    """
    tokens: of a step, over all GPUs.
    code_bytes: of a token of a picture, as it is read.
    stride: pixels of a side of a picture for each token.
    """

    tokens: int
    code_bytes: int
    stride: int

    def pictures(self, side: int) -> int:
        """How many pictures of `side` x `side` pixels a step has, where all are as large."""
        return int((1 - TEXT_SHARE) * self.tokens) // (side // self.stride) ** 2

    def hours(self, tokens_per_second: float) -> float:
        """At so many tokens a second over all GPUs."""
        return self.tokens * self.steps / tokens_per_second / 3600

    def gib_a_day(self, tokens_per_second: float) -> float:
        """Codes that are read in a day at so many tokens a second over all GPUs."""
        return tokens_per_second * 86400 * (1 - TEXT_SHARE) * self.code_bytes / GIB


def plan_training(config: MLLMTrainingConfig, num_gpus: int) -> TokenPlan:
    """
    The plan of one stage.

    Args:
        num_gpus: how many share a step.

    Raises:
        ValueError: when the config of the language model, or of the pipeline that the stage starts from, can't be
            read; or `batch_size` samples, of no known length, are padded.
    """
    if num_gpus < 1:
        raise ValueError(f"`num_gpus` must be 1 or more, got {num_gpus}.")
    if config.packed_tokens is None and config.max_length is None:
        raise ValueError("`packed_tokens` or `max_length` must be set: without them nothing says how long a row is.")
    model_config = planned_config(config)
    with torch.device("meta"):
        model = UniWeTokForCausalLM(model_config)
    if config.lora:
        with torch.device("meta"):
            chosen = add_lora(model, config.lora, config.seed)
    else:
        chosen = choose_parameters(model, config.trainable, frozen_patterns(model))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in chosen)
    turns = num_gpus * config.gradient_accumulation_steps
    rows = 1 if config.packed_tokens else math.ceil(config.batch_size / turns)
    row_tokens = config.packed_tokens or config.max_length
    activations = count_activations(model, rows * row_tokens, config)
    averages = BYTES * trained if config.ema_decay is not None else 0
    states = {
        "weights": BYTES * parameters,
        "gradients": BYTES * trained,
        "Adam's moments": 2 * BYTES * trained,
        "averages": averages,
    }
    # One layer's weights are gathered, and the next one's on their way, in what the layers compute with.
    layer = sum(parameter.numel() for parameter in model.model.language_model.layers[0].parameters())
    largest = max(layer, model.lm_head.weight.numel())
    whole = {**states, "buckets of gradients": BYTES * trained}
    spread = {name: size / num_gpus for name, size in states.items()} | {"gathered weights": 2 * COMPUTED * largest}
    memory = {
        kind: {name: size / GIB for name, size in {**parts, **activations}.items() if size}
        for kind, parts in {"copies": whole if num_gpus > 1 else states, "shards": spread}.items()
    }
    tokens, vision = rows * row_tokens * turns, model_config.vision_config
    return TokenPlan(memory, parameters, trained, config.max_train_steps, tokens, vision.num_bits // 8, vision.stride)


def planned_config(config: MLLMTrainingConfig) -> UniWeTokMLLMConfig:
    """The config of the model that a stage trains. An image tokenizer that is not there counts as one of the paper's
    size.

    Raises:
        ValueError: when the stage before it is not finished.
    """
    if config.init_from is not None:
        place = find_result(config.init_from, "pipeline")
        if not os.path.isdir(place) and (is_local_name(config.init_from) or "/" not in config.init_from):
            raise ValueError(f"`init_from` {config.init_from} is not there yet, and its sizes follow from it.")
        with field_named("init_from"):
            found = UniWeTokMLLMConfig.from_pretrained(place, subfolder="mllm")
        found.patch_size = config.mllm.get("patch_size", found.patch_size)
        return found
    vision_config = UniWeTokConfig()
    if config.vision_model is not None and os.path.isdir(place := find_result(config.vision_model, "model")):
        with field_named("vision_model"):
            vision_config = UniWeTokConfig.from_pretrained(place, subfolder=vision_subfolder(place))
    patch_size = config.mllm.get("patch_size", 1)
    num_size_tokens = config.num_size_tokens or LARGEST_SIDE // vision_config.stride
    num_new = len(PROMPT_TOKENS) + num_size_tokens + patch_size**2 - 1
    text_config: PreTrainedConfig
    if config.language_model is not None:
        with field_named("language_model"):
            text_config = AutoConfig.from_pretrained(config.language_model)
        num_known = text_config.vocab_size
    else:
        with field_named("text_model"):
            text_config = AutoConfig.for_model(**config.text_model)
        num_known = config.vocab_size
    text_config.vocab_size = num_known + num_new
    with field_named("head"):
        head = UniWeTokHeadConfig(
            num_bits=vision_config.num_bits, condition_size=text_config.hidden_size, **config.head
        )
    with field_named("mllm"):
        return UniWeTokMLLMConfig(
            text_config=text_config,
            vision_config=vision_config,
            head_config=head,
            num_size_tokens=num_size_tokens,
            image_token_id=num_known,
            vision_start_token_id=num_known + 1,
            vision_end_token_id=num_known + 2,
            size_token_id=num_known + len(PROMPT_TOKENS),
            query_token_id=num_known + len(PROMPT_TOKENS) + num_size_tokens,
            **config.mllm,
        )


def count_activations(model: UniWeTokForCausalLM, num_tokens: int, config: MLLMTrainingConfig) -> dict[str, int]:
    """Bytes that the forward pass of `num_tokens` tokens keeps for the backward pass, by part."""
    model, hidden_size = model.to(torch.bfloat16), model.config.text_config.hidden_size
    language_model, block = model.model.language_model, model.config.tokens_per_patch
    states = torch.empty(1, num_tokens, hidden_size, device="meta", dtype=torch.bfloat16, requires_grad=True)
    angles = language_model.rotary_emb(states, torch.empty(1, num_tokens, device="meta", dtype=torch.long))
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
    language_model.config._attn_implementation = model.image_head.config._attn_implementation = ATTENTION
    layer = language_model.layers[0]
    of_layer = kept_bytes(lambda: layer(states, position_embeddings=angles, attention_mask=None), layer)
    num_layers, of_states = len(language_model.layers), COMPUTED * num_tokens * hidden_size
    if config.gradient_checkpointing:
        language = {"inputs of the layers": num_layers * of_states, "one layer, computed again": of_layer}
    else:
        language = {"layers": num_layers * of_layer}

    num_patches = max(int((1 - TEXT_SHARE) * num_tokens) // block, 1) * model.config.num_diffusion_draws
    shape = (num_patches, block)
    codes = torch.empty(*shape, model.config.vision_config.num_bits, device="meta", dtype=torch.bfloat16)
    condition = torch.empty(*shape, hidden_size, device="meta", dtype=torch.bfloat16, requires_grad=True)
    times = torch.empty(num_patches, device="meta", dtype=torch.bfloat16)
    of_head = kept_bytes(lambda: model.image_head(codes, times, condition), model.image_head)
    if config.gradient_checkpointing:
        num_head_layers = model.config.head_config.num_hidden_layers
        of_inputs = COMPUTED * num_patches * block * model.config.head_config.hidden_size
        of_head = num_head_layers * of_inputs + of_head // num_head_layers
    text = int(TEXT_SHARE * num_tokens) * model.config.text_config.vocab_size
    # Logits in bfloat16 and float32, and the gradient of the latter.
    return {**language, "diffusion head": of_head, "logits of the text": (COMPUTED + 2 * BYTES) * text}


def kept_bytes(compute: Callable[[], object], module: torch.nn.Module) -> int:
    """Bytes of the tensors that autograd keeps of a computation, but for the module's weights."""
    with noting_kept(module) as kept:
        compute()
    return kept()


@contextlib.contextmanager
def noting_kept(module: torch.nn.Module | None) -> Iterator[Callable[[], int]]:
    """Gives a function that tells how many bytes of tensors autograd has kept in the block so far, but for those of
    the module's weights."""
    parameters = module.parameters() if module is not None else ()
    weights = {parameter.untyped_storage()._cdata for parameter in parameters}
    kept: dict[int, torch.UntypedStorage] = {}  # alive, so that no two have one address

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield lambda: sum(storage.nbytes() for storage in kept.values())


class _Attention(torch.autograd.Function):
    """Attention that computes nothing, and keeps what flash and flex attention do."""

    @staticmethod
    def forward(ctx, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output


def attend(module, query, key, value, attention_mask=None, **kwargs):
    return _Attention.apply(query, key, value).transpose(1, 2), None
