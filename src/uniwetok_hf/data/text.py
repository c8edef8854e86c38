# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""A small text tokenizer with the tokens that the unified model needs, for models trained from scratch."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


def train_text_vocabulary(
    texts: Iterable[str], vocab_size: int, num_size_tokens: int, patch_size: int = 1
) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on `texts`, so that any text can be written, with the special tokens after it.

    Args:
        texts: texts like those that the model reads and writes.
        vocab_size: entries without the special tokens, 256 or more.
        num_size_tokens: longest side of a picture in tokens, `<|res_1|>` ... .
        patch_size: side of the square of tokens generated at once; gives `<|query_1|>` ... .

    Raises:
        ValueError: when `vocab_size` has no room for the 256 bytes.
    """
    if vocab_size < 256:
        raise ValueError(f"`vocab_size` must be 256 or more (one entry per byte), got {vocab_size}.")
    bpe = Tokenizer(models.BPE())
    # Qwen's way of cutting text, but for whole numbers: newlines stay apart from words.
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    special = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    special += [f"<|res_{i + 1}|>" for i in range(num_size_tokens)]
    special += [f"<|query_{i + 1}|>" for i in range(patch_size**2 - 1)]
    text_vocabulary = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    text_vocabulary.add_special_tokens({"additional_special_tokens": special})
    return text_vocabulary
