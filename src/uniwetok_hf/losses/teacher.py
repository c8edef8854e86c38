# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The frozen teacher of Pre-Post Distillation: any vision model of transformers as one vector per picture
(docs/method.md 2.5; the paper's is SigLIP 2 so400m, whose vectors have 1152 channels).

- It sees the very pixels that the image tokenizer is trained on, in [-1, 1] and of any size. They are resized to its
  own size (both sides, so that nothing is cut off, as SigLIP's processor does; CLIP's would crop) and normalised as
  its image processor says.
- A dual encoder (SigLIP, CLIP) gives its image features, which texts can be compared with; another model gives its
  pooled output, or the mean of its last hidden states when it has none of its own (`pooling` says which it is).
- It is frozen, always in eval mode, and no gradient passes it.
"""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from ..files import is_local_name
from ..provenance import weight_digests
from ..quiet import without_warning


logger = logging.get_logger(__name__)


class Teacher(nn.Module):
    """
    Args:
        model: a transformers model that takes `pixel_values`, or a dual encoder with `get_image_features`.
        image_size: (height, width) in pixels that it is shown.
        image_mean, image_std: what its pixels in 0...1 are normalised with, one per channel.
        text_tokenizer: what prepares texts for a dual encoder.
        pooling: `"image features"`, `"pooled output"` or `"mean of hidden states"`.
        name: what it was loaded by.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        model: nn.Module,
        image_size: tuple[int, int],
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        text_tokenizer=None,
        pooling: str = "image features",
        name: str = "",
    ):
        super().__init__()
        self.model: Any = model
        self.image_size, self.text_tokenizer, self.pooling, self.name = image_size, text_tokenizer, pooling, name
        self._digests: tuple[str, ...] | None = None  # of all weights, when some were dropped
        for statistic, values in (("mean", image_mean), ("std", image_std)):
            values = torch.tensor(values, device=self.model.device, dtype=torch.float32)[:, None, None]
            self.register_buffer(statistic, values, persistent=False)
        self.requires_grad_(False).eval()
        self.embedding_size = self.embed_pictures(
            torch.zeros(1, 3, *image_size, device=self.mean.device, dtype=torch.float32)
        ).shape[1]

    @classmethod
    @without_warning("transformers.configuration_utils", "within the vocabulary")  # of SigLIP's own defaults
    def from_pretrained(cls, name_or_path: str | os.PathLike, dtype: torch.dtype = torch.float32) -> "Teacher":
        """Loads a folder, or a model of the Hub by name, with its image processor and, for a dual encoder, its text
        tokenizer. Without an image processor, mean and deviation are 0.5.

        Raises:
            OSError: when the Hub has no such model.
            ValueError: when there is no such folder; for a model that reads no fixed-size pictures, or lacks weights.
        """
        if is_local_name(name_or_path) and not os.path.isdir(name_or_path):
            raise ValueError(f"`name_or_path` {name_or_path}: there is no such folder.")
        config = AutoConfig.from_pretrained(name_or_path)
        if config.model_type.startswith("siglip2"):
            raise ValueError(
                f"`name_or_path` {name_or_path} is a NaFlex SigLIP 2, which reads patches of any number, not pixels; "
                "take one of a fixed size, such as google/siglip2-so400m-patch16-384."
            )
        model, report = AutoModel.from_pretrained(name_or_path, dtype=dtype, output_loading_info=True)
        missing = sorted(report["missing_keys"])
        # Classifiers come without a pooler; a random one must not teach.
        if lacking := [key for key in missing if not key.startswith("pooler.")]:
            raise ValueError(f"`name_or_path` {name_or_path} lacks {len(lacking)} weights; the first is {lacking[0]}.")
        is_dual = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")
        if not is_dual and model.main_input_name != "pixel_values":
            raise ValueError(
                f"`name_or_path` {name_or_path} ({type(model).__name__}) reads {model.main_input_name}; give a vision "
                "model or a dual encoder such as SigLIP."
            )
        image_size, mean, std = _read_preprocessing(name_or_path, config)
        return cls(
            model,
            image_size,
            mean,
            std,
            text_tokenizer=AutoTokenizer.from_pretrained(name_or_path) if is_dual else None,
            pooling="image features" if is_dual else _own_pooling(model, image_size, has_pooler=not missing),
            name=str(name_or_path),
        )

    @property
    def digests(self) -> tuple[str, ...]:
        """Digests of all weights that it was loaded with (`provenance.py`), the same in every dtype."""
        return self._digests or weight_digests(self.model)

    @property
    def fingerprint(self) -> str:
        """Digest of the weights, the same in every dtype: two teachers with one fingerprint teach the same."""
        return hashlib.sha256(" ".join(self.digests).encode()).hexdigest()

    def drop_texts(self) -> "Teacher":
        """Frees the weights of a dual encoder's text half, which [`embed_texts`] needs and a training does not."""
        self._digests, self.text_tokenizer = self.digests, None
        for name in [name for name, _ in self.model.named_children() if name.startswith("text_")]:
            setattr(self.model, name, None)
        return self

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode, whatever it is a part of."""
        return super().train(False)

    def prepare(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] as the model wants them: float32 [B, 3, *image_size], normalised."""
        pixel_values = pixel_values.float()
        if pixel_values.shape[2:] != self.image_size:
            pixel_values = F.interpolate(pixel_values, self.image_size, mode="bicubic", antialias=True)
        pixel_values = (pixel_values + 1).div(2).clamp(0, 1)  # bicubic overshoots
        return (pixel_values - self.mean) / self.std

    @torch.no_grad()
    def embed_pictures(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Vectors [B, embedding_size], float32, not normalised, of pictures [B, 3, H, W] in [-1, 1] of any size."""
        pixel_values = self.prepare(pixel_values).to(self.model.dtype)
        if self.pooling == "image features":
            return self.model.get_image_features(pixel_values=pixel_values).pooler_output.float()
        output = self.model(pixel_values=pixel_values)
        if self.pooling == "pooled output":
            return output.pooler_output.flatten(1).float()  # [B, channels, 1, 1] of convolutional models
        states = output.last_hidden_state.float()
        return states.mean(1) if states.ndim == 3 else states.flatten(2).mean(2)  # [B, N, C] or [B, C, h, w]

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Vectors [B, embedding_size], float32, not normalised, of texts; what is too long is cut.

        Every text is padded to the full length: SigLIP was trained so and is worse without, CLIP ignores the padding.

        Raises:
            ValueError: when the teacher has no text half, or [`drop_texts`] has freed it.
        """
        if self.text_tokenizer is None:
            raise ValueError(f"The teacher {self.name} reads no texts; a dual encoder such as SigLIP does.")
        inputs = self.text_tokenizer(
            as_trained_on(texts, self.text_tokenizer),
            padding="max_length",
            max_length=self.model.config.text_config.max_position_embeddings,
            truncation=True,
            return_token_type_ids=False,
            return_tensors="pt",
        )
        return self.model.get_text_features(**inputs.to(self.mean.device)).pooler_output.float()


def as_trained_on(texts: Sequence[str], text_tokenizer) -> list[str]:
    """Texts as a dual encoder was trained on them. SigLIP 2 learnt from lower case alone, which the tokenizer of its
    checkpoints for pictures of a fixed size, that of Gemma, does not make."""
    is_gemma = "Gemma" in type(text_tokenizer).__name__ or len(text_tokenizer) >= 256_000
    return [text.lower() for text in texts] if is_gemma else list(texts)


def _read_preprocessing(name_or_path, config) -> tuple[tuple[int, int], Sequence[float], Sequence[float]]:
    """Size, mean and standard deviation of the model's image processor; without one, the config's size and 0.5."""
    half = (0.5, 0.5, 0.5)
    try:
        processor = AutoImageProcessor.from_pretrained(name_or_path)
    except OSError:
        logger.warning(f"{name_or_path} has no image processor: its pixels are normalised with mean and std 0.5.")
        side = getattr(getattr(config, "vision_config", config), "image_size", None)
        if not isinstance(side, int):
            raise ValueError(
                f"`name_or_path` {name_or_path} has neither an image processor nor an `image_size` in its config."
            ) from None
        return (side, side), half, half
    size = getattr(processor, "crop_size", None) or processor.size
    image_size = (size.height or size.shortest_edge, size.width or size.shortest_edge)
    if not processor.do_normalize:
        return image_size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return image_size, processor.image_mean, processor.image_std


def _own_pooling(model: PreTrainedModel, image_size: tuple[int, int], has_pooler: bool) -> str:
    """Whether a vision model has a pooled output of its own."""
    with torch.no_grad():
        output = model.eval()(pixel_values=torch.zeros(1, 3, *image_size, dtype=model.dtype))
    if has_pooler and getattr(output, "pooler_output", None) is not None:
        return "pooled output"
    return "mean of hidden states"
