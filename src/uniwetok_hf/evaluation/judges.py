# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Frozen models for the metrics: any vision model of transformers gives features and a perceptual distance, any dual
encoder (CLIP, SigLIP, ...) also compares pictures with texts.

The folder holds model and image processor, and for texts a tokenizer; pictures are prepared by the model's own
processor. `timm/...` models load through transformers' wrapper when timm is installed; FID's own network is in
`inception`.

Both classes have `seen`: whether a training loss of the evaluated model used the network, in words for the protocol.
"""

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from ..losses.perceptual import LPIPS, FeatureDistance, PerceptualLoss
from ..losses.teacher import as_trained_on
from ..provenance import check_unseen, short_name, weight_digests
from .processes import ALONE, Processes


NOT_CHECKED = "not checked"
MOST_ELONGATED = 32  # a longer picture is cut before it is scaled, where only its middle is looked at


class Judge:
    """
    A frozen model that turns pictures, and if it can texts, into vectors.

    Args:
        model: a transformers model with `get_image_features` (a dual encoder), or whose output has `pooler_output` or
            `last_hidden_state`.
        image_processor: what prepares pictures for it.
        tokenizer: what prepares texts, for a dual encoder.
        name: its name in results.
        has_pooler: whether the model's own pooled output is used; if not, the mean over positions.
    """

    seen = NOT_CHECKED

    def __init__(self, model, image_processor, tokenizer=None, name: str | None = None, has_pooler: bool = True):
        self.model = model.eval().requires_grad_(False)
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.name = name or type(model).__name__
        self.has_pooler = has_pooler
        self.sees_middle = keeps_middle(image_processor)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike,
        device: str | torch.device = "cpu",
        unseen_by: str | os.PathLike | None = None,
    ) -> "Judge":
        """
        Loads a folder, or a model of the Hub by name.

        Args:
            unseen_by: folder of the model that is evaluated. A judge that one of its training losses used is refused:
                the scores would be flattered.

        Raises:
            ValueError: when there is no model, weights are missing, no image processor lies beside them, or a training
                loss of the model in `unseen_by` used it.
        """
        dtype = torch.float32 if torch.device(device).type == "cpu" else "auto"
        try:
            model, report = AutoModel.from_pretrained(folder, dtype=dtype, output_loading_info=True)
            image_processor = AutoImageProcessor.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder) if hasattr(model, "get_text_features") else None
        except (OSError, KeyError, RuntimeError, ValueError, ImportError) as error:
            raise ValueError(f"`judge` {folder} can't be loaded: {error}") from error
        # Checkpoints of classifiers have no pooler; a random one must not get into the features.
        missing = sorted(report["missing_keys"])
        if lacking := [key for key in missing if not key.startswith("pooler.")]:
            raise ValueError(f"`judge` {folder} lacks {len(lacking)} weights, the first is {lacking[0]}.")
        judge = cls(model.to(device), image_processor, tokenizer, short_name(folder), has_pooler=not missing)
        if unseen_by is not None:
            judge.seen = check_unseen(judge.model, judge.name, unseen_by)
        return judge

    @property
    def reads_texts(self) -> bool:
        """Whether it compares pictures with texts."""
        return self.tokenizer is not None

    def describe(self) -> str:
        """Name, class and eight letters of its weights' digest: two results with the same line are comparable."""
        return f"{self.name} ({type(self.model).__name__}, weights {short_digest(self.model)})"

    def embed_images(
        self, images: Sequence[Image.Image], batch_size: int = 32, processes: Processes = ALONE
    ) -> np.ndarray:
        """Features float32 [N, channels] of RGB pictures of any sizes; `processes` share the batches."""
        return np.stack(processes.map(self._embed_batch, images, batch_size))

    @torch.no_grad()
    def _embed_batch(self, images: list[Image.Image]) -> np.ndarray:
        if self.sees_middle:
            images = [middle_of(image) for image in images]
        inputs = self.image_processor(images=images, return_tensors="pt")
        inputs = {name: self._place(value) for name, value in inputs.items()}
        output = self.model.get_image_features(**inputs) if self.reads_texts else self.model(**inputs)
        return self._pooled(output).float().cpu().numpy()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Embeddings float32 [N, channels] of texts, to be compared with those of `embed_images`; long texts are cut.

        Raises:
            ValueError: when the model has no text half.
        """
        if not self.reads_texts:
            raise ValueError(f"`judge` {self.name} ({type(self.model).__name__}) reads no texts: give a dual encoder.")
        longest = self.model.config.text_config.max_position_embeddings
        # SigLIP was trained with every text padded to the full length, and is worse without.
        padding = "max_length" if self.model.config.model_type.startswith("siglip") else True
        parts = []
        for start in range(0, len(texts), batch_size):
            inputs = self.tokenizer(
                as_trained_on(texts[start : start + batch_size], self.tokenizer),
                padding=padding,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            )
            inputs = {name: self._place(value) for name, value in inputs.items() if name != "token_type_ids"}
            parts.append(self._pooled(self.model.get_text_features(**inputs)).float().cpu().numpy())
        return np.concatenate(parts)

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = self.model.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self.model.device, dtype)

    def _pooled(self, output) -> torch.Tensor:
        """One vector per sample: the model's own, else the mean over positions; [B, channels]."""
        if torch.is_tensor(output):
            return output.flatten(1)
        if self.has_pooler and getattr(output, "pooler_output", None) is not None:
            return output.pooler_output.flatten(1)  # [B, channels, 1, 1] of convolutional models
        states = output.last_hidden_state
        return states.mean(dim=1) if states.ndim == 3 else states.flatten(2).mean(dim=2)  # [B, N, C] or [B, C, h, w]


def keeps_middle(image_processor) -> bool:
    """Whether an image processor scales the shorter side of a picture and then keeps its middle, so that a picture of
    1 x 20,000 pixels would take gigabytes on its way."""
    if hasattr(image_processor, "val_transforms"):  # timm's
        return any(type(step).__name__ == "CenterCrop" for step in image_processor.val_transforms.transforms)
    edge = (getattr(image_processor, "size", None) or {}).get("shortest_edge")
    if edge is None or not getattr(image_processor, "do_resize", False):
        return False
    crops = getattr(image_processor, "crop_pct", None) is not None and edge < 384  # ConvNeXt's, as it decides
    return bool(crops or getattr(image_processor, "do_center_crop", False))


def middle_of(picture: Image.Image) -> Image.Image:
    """The middle of a picture that is longer than `MOST_ELONGATED` times its shorter side; others as they are."""
    longest = MOST_ELONGATED * min(picture.size)
    # By an even number of pixels, so that the middle stays where it is.
    left, top = (max(0, side - longest) // 2 for side in picture.size)
    if not left and not top:
        return picture
    return picture.crop((left, top, picture.width - left, picture.height - top))


class PerceptualNetwork:
    """
    The network of a perceptual distance.

    Args:
        network: what [`perceptual_distance`] takes.
        name: its name in results.
    """

    seen = NOT_CHECKED

    def __init__(self, network: FeatureDistance, name: str):
        self.network = network
        self.name = name

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, device: str | torch.device = "cpu") -> "PerceptualNetwork":
        """
        Loads a `.safetensors` file of `convert_lpips`, or the folder or Hub name of a vision model.

        Raises:
            ValueError: when there is none.
        """
        load = LPIPS.from_file if str(source).endswith(".safetensors") else PerceptualLoss.from_pretrained
        try:
            return cls(load(source).to(device), short_name(source))
        except (OSError, KeyError) as error:
            raise ValueError(f"`network` {source} can't be loaded: {error}") from error

    def describe(self) -> str:
        """Name and kind of the network, and the digest of its weights."""
        digest = short_digest(self.network)
        if isinstance(self.network, LPIPS):
            return f"LPIPS of {self.name} (weights {digest})"
        return f"features of {self.name} ({type(self.network.model).__name__}, weights {digest}), all channels alike"


def short_digest(network: torch.nn.Module) -> str:
    """Eight letters that tell the weights of networks apart."""
    return hashlib.sha256(" ".join(weight_digests(network)).encode()).hexdigest()[:8]
