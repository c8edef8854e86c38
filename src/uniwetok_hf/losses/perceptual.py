# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Perceptual loss: how far two pictures are in the features of a frozen network (docs/method.md 2.2; Zhang et al.
2018).

At every position of every chosen layer the features are scaled to length 1; the distance of two pictures is the
squared difference, summed over channels, averaged over positions, summed over layers:

    d(x, y) = sum_l mean_hw sum_c w_lc (f_lc(x) / |f_l(x)| - f_lc(y) / |f_l(y)|)^2

- [`PerceptualLoss`] takes f from any vision model of transformers; all w are 1.
- [`LPIPS`] takes f from VGG16 and learned w: the metric itself, for users who have its weights.

Gradients reach the first picture only. The network runs under autocast if there is any, the rest in float32.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.utils import logging


logger = logging.get_logger(__name__)

STAGE_ENDS = (1, 3, 6, 9, 12)  # of VGG16, among its 13 convolutions: relu1_2, 2_2, 3_3, 4_3, 5_3
VGG16_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


class FeatureDistance(nn.Module):
    """Base of both losses: frozen and always in eval mode. A subclass says what `features` and `channel_weights` are.

    Args:
        shift, scale: of the pixels in [-1, 1]: the network sees (pixels - shift) / scale, three channels each.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, shift: Sequence[float], scale: Sequence[float]):
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32)[:, None, None], persistent=False)

    def features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Features [B, channels, ...positions] of every chosen layer, of pictures [B, 3, H, W] as the network wants
        them."""
        raise NotImplementedError

    def channel_weights(self) -> Sequence[torch.Tensor] | None:
        """Weights [channels] of every chosen layer, or None when all are 1."""
        return None

    def distances(self, sample: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Distance of each picture of `sample` from that of `pixel_values`, both [B, 3, H, W] in [-1, 1]. Float32 [B].

        Raises:
            ValueError: when the shapes differ.
        """
        if sample.shape != pixel_values.shape:
            raise ValueError(
                f"`sample` must be shaped like `pixel_values`, {tuple(pixel_values.shape)}, got {tuple(sample.shape)}."
            )
        with torch.no_grad():
            wanted = self._directions(pixel_values)
        found = self._directions(sample)
        weights = self.channel_weights() or [None] * len(found)
        parts = []
        for one, other, weight in zip(found, wanted, weights, strict=True):
            error = (one - other).square().flatten(2)  # [B, channels, positions]
            parts.append((error if weight is None else error * weight[:, None]).sum(1).mean(1))
        return torch.stack(parts).sum(0)

    def forward(self, sample: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Mean of [`distances`]. Scalar."""
        return self.distances(sample, pixel_values).mean()

    def train(self, mode: bool = True) -> "FeatureDistance":
        return super().train(False)

    def _freeze(self) -> None:
        self.requires_grad_(False).eval()

    def _directions(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Features of pixels in [-1, 1], scaled to length 1 over the channels."""
        features = self.features((pixel_values.float() - self.shift) / self.scale)
        return [F.normalize(values.float(), dim=1, eps=1e-10) for values in features]


class PerceptualLoss(FeatureDistance):
    """Distance in the features of a vision model of transformers.

    A backbone (`AutoBackbone`: ResNet, ConvNeXt, Swin, DINOv2...) gives its `feature_maps`, another model
    (`AutoModel`: ViT, SigLIP...) its `hidden_states`, whose tokens are positions, a class token too. Of a dual encoder
    (SigLIP, CLIP) the vision tower is taken.

    Args:
        model: the model, with weights; it is frozen.
        layers: numbers of layers, the last counting as -1; 0 is what comes before the first. By default those that the
            backbone was made for, or else four evenly spread ones, the last among them.
        image_mean, image_std: what the model's pixels of 0...1 are normalised with.
        image_size: side to which pictures are resized (bicubic, whatever their aspect ratio). By default that of the
            model's learned positions; pictures keep their size when the model is a backbone or has no such positions.

    Raises:
        ValueError: for a model that takes no pictures, or, at the first call, `layers` that are not there.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[int] | None = None,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        image_size: int | None = None,
    ):
        super().__init__([2 * mean - 1 for mean in image_mean], [2 * std for std in image_std])
        self.model: Any = getattr(model, "vision_model", model)
        if self.model.main_input_name != "pixel_values":
            raise ValueError(f"`model` must take pictures, but {type(model).__name__} takes {model.main_input_name}.")
        self.layers = layers
        self.image_size = image_size or _positions_size(self.model)
        self.to(self.model.device)
        self._freeze()

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike, layers: Sequence[int] | None = None, image_size: int | None = None
    ) -> "PerceptualLoss":
        """The loss with a model from a folder or the Hub, and the normalisation of its image processor; without a
        processor, mean and deviation are 0.5.

        Raises:
            ValueError: when weights of the model are missing: nothing can be learnt from random ones.
        """
        config = AutoConfig.from_pretrained(name_or_path)
        # AutoBackbone picks the same class, but asks the Hub even for a folder (transformers 5.23).
        model_class: Any = MODEL_FOR_BACKBONE_MAPPING.get(type(config), AutoModel)
        if model_class is not AutoModel:
            config.out_indices = _choose_layers(layers, len(config.stage_names))
        model, info = model_class.from_pretrained(
            name_or_path, config=config, dtype=torch.float32, output_loading_info=True
        )
        # What follows the layers may be missing: poolers, and the plain norms that a backbone puts behind its stages.
        missing = [name for name in info["missing_keys"] if "pooler" not in name and "hidden_states_norms" not in name]
        if missing:
            raise ValueError(f"`name_or_path`: {name_or_path} has no weights for {', '.join(sorted(missing)[:5])}.")
        mean, std = _normalisation(name_or_path)
        return cls(model, layers, mean, std, image_size)

    def features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        if self.image_size and pixel_values.shape[2:] != (self.image_size, self.image_size):
            pixel_values = F.interpolate(pixel_values, self.image_size, mode="bicubic", antialias=True)
        if _is_backbone(self.model):
            maps = self.model(pixel_values).feature_maps
            numbers = [number % len(self.model.stage_names) for number in self.model.out_indices]
            found, count = dict(zip(numbers, maps, strict=True)), len(self.model.stage_names)
            layers = numbers if self.layers is None else _choose_layers(self.layers, count, numbers)
        else:
            states = self.model(pixel_values, output_hidden_states=True).hidden_states
            found, layers = states, _choose_layers(self.layers, len(states))
        # Tokens come as [B, positions, channels].
        return [found[layer].transpose(1, 2) if found[layer].ndim == 3 else found[layer] for layer in layers]


class LPIPS(FeatureDistance):
    """LPIPS: the layers relu{1_2, 2_2, 3_3, 4_3, 5_3} of VGG16 and a learned weight for every channel.

    The value is that of the published metric only with its own weights, ImageNet's VGG16 and LPIPS v0.1; with others
    never compare it with published numbers. `conversion.lpips.convert_lpips` writes the file for [`from_file`].

    Args:
        widths: channels of the 13 convolutions.
        blurs: whether pictures are halved by max pooling of stride 1 and a [1, 2, 1] blur of stride 2 instead of plain
            max pooling, as in the trunk of ShiftTolerant-LPIPS (Ghildyal and Liu 2022), which was trained that way.
    """

    blur: torch.Tensor | None

    def __init__(self, widths: Sequence[int] = VGG16_WIDTHS, blurs: bool = False):
        super().__init__(shift=(-0.030, -0.088, -0.188), scale=(0.458, 0.448, 0.450))
        inputs = (3, *widths[:-1])
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in zip(inputs, widths, strict=True))
        self.heads = nn.ParameterList(torch.ones(widths[end]) for end in STAGE_ENDS)
        kernel = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float32) / 4
        self.register_buffer("blur", torch.outer(kernel, kernel) if blurs else None)
        self._freeze()

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "LPIPS":
        """The loss with the weights in a safetensors file of `convert_lpips`; their shapes give the widths.

        Raises:
            ValueError: for a file of another kind.
        """
        try:
            weights = load_file(path)
            widths = [len(weights[f"convs.{index}.weight"]) for index in range(len(VGG16_WIDTHS))]
            loss = cls(widths, blurs="blur" in weights).float()
            loss.load_state_dict(weights)
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise ValueError(f"`path`: {path} is no file of `convert_lpips` ({error}).") from error
        return loss

    def channel_weights(self) -> Sequence[torch.Tensor]:
        return list(self.heads)

    def features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        least = 18 if self.blur is not None else 16
        if min(pixel_values.shape[2:]) < least:
            height, width = pixel_values.shape[2:]
            raise ValueError(f"`pixel_values` must have sides of at least {least} pixels, got {height}x{width}.")
        features, hidden_states = [], pixel_values
        for index, conv in enumerate(self.convs):
            if index - 1 in STAGE_ENDS:
                hidden_states = self._halve(hidden_states)
            hidden_states = F.relu(conv(hidden_states))
            if index in STAGE_ENDS:
                features.append(hidden_states)
        return features

    def _halve(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.blur is None:
            return F.max_pool2d(hidden_states, 2)
        hidden_states = F.pad(F.max_pool2d(hidden_states, 2, stride=1), (2, 2, 2, 2), mode="reflect")
        channels = hidden_states.shape[1]
        return F.conv2d(hidden_states, self.blur.expand(channels, 1, 3, 3), stride=2, groups=channels)


def _choose_layers(layers: Sequence[int] | None, count: int, among: Sequence[int] | None = None) -> list[int]:
    """`layers` as numbers from 0, in order; by default four evenly spread ones of those after the first."""
    if layers is None:
        return sorted({round((count - 1) * quarter / 4) for quarter in (1, 2, 3, 4)} - {0})
    among = range(count) if among is None else among
    chosen = sorted({layer + count if layer < 0 else layer for layer in layers})
    if not chosen or not set(chosen) <= set(among):
        raise ValueError(f"`layers` must be some of {', '.join(map(str, among))}, got {list(layers)}.")
    return chosen


def _is_backbone(model: PreTrainedModel) -> bool:
    return hasattr(model, "out_features")


def _positions_size(model: PreTrainedModel) -> int | None:
    """Side of the pictures that a model's learned positions are for, or None when it takes any."""
    if _is_backbone(model) or not any("position_embed" in name for name, _ in model.named_parameters()):
        return None
    size = getattr(model.config, "image_size", None)
    if not isinstance(size, int):  # such as SigLIP2's NaFlex models, which take patches
        raise ValueError(f"`model`: the config of {type(model).__name__} names no `image_size` for its positions.")
    return size


def _normalisation(name_or_path: str | os.PathLike) -> tuple[Sequence[float], Sequence[float]]:
    try:
        processor = AutoImageProcessor.from_pretrained(name_or_path)
    except OSError:
        logger.warning(f"{name_or_path} has no image processor: its pixels are normalised with mean and std 0.5.")
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if not processor.do_normalize:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return tuple(processor.image_mean), tuple(processor.image_std)
