"""The tiny unified model with random weights, and inputs for it with the placeholders already written out."""

import copy
import functools

import torch
from tiny_models import build_tiny_mllm, build_tiny_processor

from uniwetok_hf import UniWeTokForCausalLM, UniWeTokProcessor


BITS, HIDDEN = 16, 32
PATCH_SIZES = [1, 2, 4]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_random_weights(model: UniWeTokForCausalLM, seed: int = 0) -> UniWeTokForCausalLM:
    """Fills every parameter: a new head predicts 0, and new norms hide their weights."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise) if parameter.ndim < 2 else parameter.copy_(noise / parameter[0].numel() ** 0.5)
    model.generation_config.eos_token_id = None  # texts of a known length
    return model.eval()


def answer_with_pictures(model: UniWeTokForCausalLM, processor: UniWeTokProcessor) -> None:
    """The model answers each turn with one picture and ends."""
    ends = [processor.tokenizer.convert_tokens_to_ids("<|vision_end|>"), processor.turn_end_token_id]
    model.generation_config.sequence_bias = [[[processor.vision_start_token_id], 1000.0], [ends, 3000.0]]


def build(patch_size: int = 1, text_config=None, head: dict | None = None, **fields) -> UniWeTokForCausalLM:
    """A new tiny model with random weights and other fields of the config."""
    config = copy.deepcopy(build_tiny_mllm(patch_size).config)
    for name, value in (head or {}).items():
        setattr(config.head_config, name, value)
    for name, value in fields.items():
        setattr(config, name, value)
    if text_config is not None:
        config.text_config = text_config
    return with_random_weights(UniWeTokForCausalLM(config))


@functools.cache
def shared(patch_size: int = 1, num_modulation_layers: int = 1) -> UniWeTokForCausalLM:
    """One model for all tests that leave it as it is."""
    return build(patch_size, head={"num_modulation_layers": num_modulation_layers})


@functools.cache
def processor(patch_size: int) -> UniWeTokProcessor:
    return build_tiny_processor(patch_size)


def random_codes(patch_size: int, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Codes [bits, h, w] of a picture of `rows` x `columns` patches."""
    noise = torch.randn(BITS, rows * patch_size, columns * patch_size, generator=seeded(seed))
    return torch.where(noise > 0, 1.0, -1.0)


def size_text(codes: torch.Tensor, patch_size: int) -> str:
    """`<|vision_start|>`, sizes and queries: the beginning of a picture."""
    return "<|vision_start|>" + processor(patch_size).picture_tokens(*(32 * side for side in codes.shape[1:]))


def picture_text(codes: torch.Tensor, patch_size: int) -> str:
    return size_text(codes, patch_size) + "<|image_pad|>" * codes[0].numel() + "<|vision_end|>"


def tokenize(*texts: str, patch_size: int = 1) -> dict[str, torch.Tensor]:
    """Left-padded `input_ids` and `attention_mask` of texts with their placeholders already written out."""
    return dict(processor(patch_size).tokenizer(list(texts), return_tensors="pt", padding=True))


def training_batch(patch_size: int = 1) -> tuple[dict, list[torch.Tensor]]:
    """Row 0: a picture as context, then one to draw; row 1: one to draw, of another size. Padded left."""
    shape = ((1, 2), (2, 1), (1, 1))
    codes = [random_codes(patch_size, *sides, seed=10 + index) for index, sides in enumerate(shape)]
    given, first, second = (picture_text(picture, patch_size) for picture in codes)
    inputs = tokenize(f"edit {given} to {first} done", f"draw {second}", patch_size=patch_size)
    inputs["labels"] = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -100)
    inputs["image_is_target"] = torch.tensor([False, True, True])
    return inputs, codes
