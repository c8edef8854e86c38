"""The whole model at a tiny size, for tests that need a pipeline: the real classes with random weights."""

from random_weights import randomized
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config

from uniwetok_hf import (
    UniWeTokClassToImageConfig,
    UniWeTokClassToImageModel,
    UniWeTokConfig,
    UniWeTokForCausalLM,
    UniWeTokImageProcessor,
    UniWeTokMLLMConfig,
    UniWeTokModel,
    UniWeTokProcessor,
)


NUM_SIZE_TOKENS = 16  # the longest side is 16 tokens of 32 pixels
TINY_VISION = {
    "num_bits": 16,
    "base_channels": 8,
    "channel_multipliers": [1, 1, 1, 1, 1, 2],
    "num_res_blocks": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_norm_groups": 4,
}
TINY_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 1024,
}
TINY_HEAD = {"hidden_size": 32, "num_hidden_layers": 2, "num_modulation_layers": 1, "head_dim": 16}


def build_tiny_text_tokenizer(patch_size: int = 1) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer without merges: one token a byte, and the special tokens that the processor needs."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    names += [f"<|res_{n + 1}|>" for n in range(NUM_SIZE_TOKENS)]
    names += [f"<|query_{n + 1}|>" for n in range(patch_size**2 - 1)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(names)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )


def build_tiny_mllm(patch_size: int = 1, seed: int = 0) -> UniWeTokForCausalLM:
    """The unified model in eval mode: stride 32, 16 bits a token, patches of `patch_size` x `patch_size` tokens.

    Every parameter is random, and larger than in a new model, where modulations start with zeros and attention looks
    at everything alike: neither a prompt nor the codes' statistics would change a picture.
    """
    text_tokenizer = build_tiny_text_tokenizer(patch_size)
    vocabulary = text_tokenizer.get_vocab()
    text_config = Qwen3Config(
        vocab_size=len(vocabulary),
        bos_token_id=None,
        eos_token_id=vocabulary["<|im_end|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
        **TINY_TEXT,
    )
    config = UniWeTokMLLMConfig(
        text_config=text_config,
        vision_config=UniWeTokConfig(**TINY_VISION),
        head_config={"num_bits": TINY_VISION["num_bits"], "condition_size": TINY_TEXT["hidden_size"]} | TINY_HEAD,
        patch_size=patch_size,
        image_token_id=vocabulary["<|image_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
        size_token_id=vocabulary["<|res_1|>"],
        num_size_tokens=NUM_SIZE_TOKENS,
        query_token_id=vocabulary.get("<|query_1|>", len(vocabulary)),
    )
    return randomized(UniWeTokForCausalLM(config), seed)


def build_tiny_processor(patch_size: int = 1) -> UniWeTokProcessor:
    """The processor of [`build_tiny_mllm`]."""
    image_processor = UniWeTokImageProcessor(stride=32 * patch_size)
    return UniWeTokProcessor(image_processor, build_tiny_text_tokenizer(patch_size), patch_size=patch_size, stride=32)


def build_tiny_pipeline(patch_size: int = 1, seed: int = 0, **defaults):
    """A [`UniWeTokPipeline`] that draws 64 x 64 pixels in 2 steps where a call says nothing else; `defaults` are its
    `default_size`, `default_num_inference_steps` and `default_guidance_scale`."""
    from uniwetok_hf import BinaryFlowScheduler, UniWeTokPipeline

    defaults = {
        "default_size": 64,
        "default_num_inference_steps": 2,
        "default_guidance_scale": 2.0,
    } | defaults
    mllm = build_tiny_mllm(patch_size, seed)
    pipeline = UniWeTokPipeline(build_tiny_processor(patch_size), mllm, BinaryFlowScheduler(), **defaults)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


TINY_CLASS_TO_IMAGE = {
    "num_bits": TINY_VISION["num_bits"],
    "grid_size": 4,
    "num_classes": 5,
    "num_class_tokens": 3,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def tiny_class_to_image_config(patch_size: int = 1, **fields) -> UniWeTokClassToImageConfig:
    """Five classes, pictures of 4 x 4 tokens of 16 bits."""
    head = {"num_bits": 16, "condition_size": 32, "squash_output": False, "has_attention": patch_size > 1} | TINY_HEAD
    return UniWeTokClassToImageConfig(**TINY_CLASS_TO_IMAGE | {"patch_size": patch_size, "head_config": head} | fields)


def build_tiny_class_to_image(patch_size: int = 1, seed: int = 0, **fields) -> UniWeTokClassToImageModel:
    """The class-to-image model with random weights."""
    return randomized(UniWeTokClassToImageModel(tiny_class_to_image_config(patch_size, **fields)), seed)


LABELS = {0: "tench, Tinca tinca", 1: "crane", 2: "golden retriever", 3: "otter", 4: "crane"}


def build_tiny_class_pipeline(patch_size: int = 1, seed: int = 0, **defaults):
    """A [`UniWeTokClassToImagePipeline`] that makes 128 x 128 pixels in 2 steps where a call says nothing else."""
    from uniwetok_hf import BinaryFlowScheduler, UniWeTokClassToImagePipeline

    defaults = {"id2label": LABELS, "default_num_inference_steps": 2, "default_guidance_scale": 2.0} | defaults
    vision_model = randomized(UniWeTokModel(UniWeTokConfig(**TINY_VISION)), seed)
    pipeline = UniWeTokClassToImagePipeline(
        build_tiny_class_to_image(patch_size, seed),
        vision_model,
        UniWeTokImageProcessor(stride=32),
        BinaryFlowScheduler(),
        **defaults,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
