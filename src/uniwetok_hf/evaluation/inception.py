# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""FID's Inception network: the Inception v3 (Szegedy et al. 2016) of December 2015, whose features give FID (Heusel et
al. 2017), precision and recall, and whose classes give the Inception score (Salimans et al. 2016).

It differs from later Inception v3 models: averages leave the border out, the last block takes a maximum in place of
an average, pictures are scaled to 299 x 299 without half-pixel centres, and there are 1,008 classes. The weights are
those that torch-fidelity and pytorch-fid use, which [`conversion.inception.convert_inception`] writes as safetensors.
"""

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from ..provenance import short_name
from .judges import short_digest
from .processes import ALONE, Processes


SIDE = 299
NUM_CLASSES = 1008

# A convolution: name, channels, kernel. A branch: convolutions in a row, the last one may be two side by side.
# A block: its branches, and how its last branch pools.
Conv = tuple[str, int, int | tuple[int, int]]
Branch = Sequence[Conv | tuple[Conv, Conv]]


class InceptionConv(nn.Module):
    """Convolution without bias, batch normalization, ReLU."""

    def __init__(self, in_channels: int, channels: int, kernel: int | tuple[int, int], stride: int = 1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(hidden_states)))


class InceptionBlock(nn.Module):
    """
    Branches side by side, whose outputs are concatenated.

    Args:
        in_channels: of the input.
        branches: the convolutions; they keep the size, but for the last of a branch in a block that halves it.
        pool_channels: of the convolution behind the pooling; None: the block halves the size, and its last branch is
            the maximum alone.
        pools_maximum: whether a maximum is pooled in place of an average.
    """

    def __init__(
        self, in_channels: int, branches: Sequence[Branch], pool_channels: int | None, pools_maximum: bool = False
    ):
        super().__init__()
        self.branches, self.halves, self.pools_maximum = branches, pool_channels is None, pools_maximum
        for branch in branches:
            width = in_channels
            for step in branch:
                pair = step if isinstance(step[0], tuple) else (step,)
                is_last = self.halves and step is branch[-1]
                for name, channels, kernel in pair:
                    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
                    padding = (0, 0) if is_last else tuple(side // 2 for side in sides)
                    setattr(self, name, InceptionConv(width, channels, sides, 2 if is_last else 1, padding))
                width = sum(channels for _, channels, _ in pair)
        self.branch_pool = InceptionConv(in_channels, pool_channels, 1) if pool_channels is not None else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        outputs = []
        for branch in self.branches:
            states = hidden_states
            for step in branch:
                pair = step if isinstance(step[0], tuple) else (step,)
                states = torch.cat([getattr(self, name)(states) for name, _, _ in pair], dim=1)
            outputs.append(states)
        if self.branch_pool is None:
            outputs.append(F.max_pool2d(hidden_states, 3, stride=2))
        elif self.pools_maximum:
            outputs.append(self.branch_pool(F.max_pool2d(hidden_states, 3, stride=1, padding=1)))
        else:
            pooled = F.avg_pool2d(hidden_states, 3, stride=1, padding=1, count_include_pad=False)
            outputs.append(self.branch_pool(pooled))
        return torch.cat(outputs, dim=1)


def _small(pool_channels: int, in_channels: int) -> InceptionBlock:
    """35 x 35, kernels of 3 and 5."""
    branches: list[Branch] = [
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
    ]
    return InceptionBlock(in_channels, branches, pool_channels)


def _long(width: int) -> InceptionBlock:
    """17 x 17, kernels of 7 as a row and a column."""
    row, column = (1, 7), (7, 1)
    branches: list[Branch] = [
        [("branch1x1", 192, 1)],
        [("branch7x7_1", width, 1), ("branch7x7_2", width, row), ("branch7x7_3", 192, column)],
        [
            ("branch7x7dbl_1", width, 1),
            ("branch7x7dbl_2", width, column),
            ("branch7x7dbl_3", width, row),
            ("branch7x7dbl_4", width, column),
            ("branch7x7dbl_5", 192, row),
        ],
    ]
    return InceptionBlock(768, branches, 192)


def _wide(in_channels: int, pools_maximum: bool) -> InceptionBlock:
    """8 x 8, kernels of 3 as a row beside a column."""
    row, column = (1, 3), (3, 1)
    branches: list[Branch] = [
        [("branch1x1", 320, 1)],
        [("branch3x3_1", 384, 1), (("branch3x3_2a", 384, row), ("branch3x3_2b", 384, column))],
        [
            ("branch3x3dbl_1", 448, 1),
            ("branch3x3dbl_2", 384, 3),
            (("branch3x3dbl_3a", 384, row), ("branch3x3dbl_3b", 384, column)),
        ],
    ]
    return InceptionBlock(in_channels, branches, 192, pools_maximum)


class InceptionNetwork(nn.Module):
    """The network, by the names of its published weights. It is frozen."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = InceptionConv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = InceptionConv(32, 32, 3)
        self.Conv2d_2b_3x3 = InceptionConv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = InceptionConv(64, 80, 1)
        self.Conv2d_4a_3x3 = InceptionConv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _small(32, 192), _small(64, 256), _small(64, 288)
        double: Branch = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
        self.Mixed_6a = InceptionBlock(288, [[("branch3x3", 384, 3)], double], None)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(_long, (128, 160, 160, 192))
        single: Branch = [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)]
        seven: Branch = [
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3),
        ]
        self.Mixed_7a = InceptionBlock(768, [single, seven], None)
        self.Mixed_7b, self.Mixed_7c = _wide(1280, False), _wide(2048, True)
        self.fc = nn.Linear(2048, NUM_CLASSES)
        self.eval().requires_grad_(False)

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            pictures: uint8 [B, 3, H, W].

        Returns:
            Features [B, 2048], and logits [B, 1008] without bias, whose softmax gives the Inception score.
        """
        states = (scale_bilinear(pictures.float(), SIDE) - 128) / 128
        states = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(states)))
        states = F.max_pool2d(states, 3, stride=2)  # [B, 64, 73, 73]
        states = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(states))
        states = F.max_pool2d(states, 3, stride=2)  # [B, 192, 35, 35]
        states = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(states)))
        states = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(states)))))  # [B, 768, 17, 17]
        states = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(states)))  # [B, 2048, 8, 8]
        features = states.mean((2, 3))
        return features, features @ self.fc.weight.T


def scale_bilinear(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """[B, C, H, W] to [B, C, side, side], as TensorFlow 1 does it: pixel i of the result is taken at i * H / side."""
    for dim in (2, 3):
        length = pictures.shape[dim]
        places = torch.arange(side, device=pictures.device) * torch.tensor(length / side, dtype=torch.float32)
        before = places.long()
        after = (before + 1).clamp(max=length - 1)
        share = (places - before).view(-1, 1) if dim == 2 else places - before
        low, high = (pictures.index_select(dim, index) for index in (before, after))
        pictures = low + (high - low) * share
    return pictures


class InceptionFeatures:
    """
    Features and classes of pictures by the network.

    Args:
        network: with its weights.
        name: in results.
        device: where it computes.
    """

    seen = "no: FID's network"

    def __init__(self, network: InceptionNetwork, name: str, device: str | torch.device = "cpu"):
        self.network, self.name = network.to(device), name

    @classmethod
    def from_file(cls, path: str | os.PathLike, device: str | torch.device = "cpu") -> "InceptionFeatures":
        """The network with the weights in a safetensors file of `convert_inception`.

        Raises:
            ValueError: for a file of another kind.
        """
        network = InceptionNetwork().float()
        try:
            counts = {name: one for name, one in network.state_dict().items() if name.endswith("num_batches_tracked")}
            network.load_state_dict(counts | load_file(path))
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"`inception`: {path} is no file of `convert_inception` ({reason}).") from error
        return cls(network, short_name(path), device)

    def describe(self) -> str:
        """The network and the digest of its weights, for a protocol."""
        return f"FID's Inception network ({self.name}, weights {short_digest(self.network)})"

    def embed_images(
        self, images: Sequence[Image.Image], batch_size: int = 32, processes: Processes = ALONE
    ) -> np.ndarray:
        """Features float32 [N, 2048] of RGB pictures of any sizes; `processes` share the batches."""
        return np.stack([features for features, _ in processes.map(self.embed_batch, images, batch_size)])

    @torch.no_grad()
    def embed_batch(self, images: Sequence[Image.Image | np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Features [2048] and logits [1008] of each of RGB pictures; those of one size are computed together."""
        arrays = [np.asarray(image) for image in images]
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for shape in dict.fromkeys(array.shape for array in arrays):
            places = [place for place, array in enumerate(arrays) if array.shape == shape]
            batch = torch.from_numpy(np.stack([arrays[place] for place in places])).permute(0, 3, 1, 2)  # [B, 3, H, W]
            outputs = (values.cpu().numpy() for values in self.network(batch.to(self.network.fc.weight.device)))
            found |= zip(places, zip(*outputs, strict=True), strict=True)
        return [found[place] for place in range(len(arrays))]


def inception_score(logits: np.ndarray, split_size: int = 5000) -> float:
    """
    exp(mean KL(p(y|x) || p(y))), as the mean over splits in the order of the pictures (ADM's evaluator).

    Args:
        logits: float [N, classes], of pictures whose classes are mixed in every split.
        split_size: pictures of a split.
    """
    scores = []
    for start in range(0, len(logits), split_size):
        part = torch.from_numpy(np.asarray(logits[start : start + split_size])).double()
        log_probabilities = part.log_softmax(dim=1)
        probabilities = log_probabilities.exp()
        marginal = probabilities.mean(dim=0, keepdim=True).log()
        scores.append((probabilities * (log_probabilities - marginal)).sum(dim=1).mean().exp().item())
    return float(np.mean(scores))
