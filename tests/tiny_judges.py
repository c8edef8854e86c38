"""Tiny models that judge pictures: real classes with random weights, saved as users save theirs."""

from pathlib import Path

import torch
from tiny_models import build_tiny_text_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTForImageClassification, ViTModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from uniwetok_hf.evaluation.inception import InceptionNetwork


SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def build_clip(folder: Path, seed: int = 0) -> str:
    """A CLIP of 32 x 32 pixels whose every parameter is random."""
    text_tokenizer = build_tiny_text_tokenizer()
    # CLIP reads a text at its end token, and fills up behind it.
    text_tokenizer.padding_side = "right"
    end = text_tokenizer.eos_token
    text_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, text_tokenizer.eos_token_id)]
    )
    config = CLIPConfig(
        text_config={
            **SMALL,
            "vocab_size": len(text_tokenizer),
            "max_position_embeddings": 48,
            "bos_token_id": None,
            "eos_token_id": text_tokenizer.eos_token_id,
            "pad_token_id": text_tokenizer.pad_token_id,
        },
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    _random(CLIPModel(config), seed).save_pretrained(folder)
    text_tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def build_vit(folder: Path, seed: int = 0, has_pooler: bool = True) -> str:
    """A vision model of 32 x 32 pixels; without a pooler, a checkpoint of a classifier."""
    config = ViTConfig(**SMALL, image_size=32, patch_size=8, num_labels=3)
    _random((ViTModel if has_pooler else ViTForImageClassification)(config), seed).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def random_inception() -> InceptionNetwork:
    """FID's network with random weights that keep the scale of what goes through it."""
    network, generator = InceptionNetwork(), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter, generator=generator)
    return network


def _random(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model
