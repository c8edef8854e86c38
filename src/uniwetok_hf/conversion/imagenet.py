# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Names of the 1,000 classes of ImageNet-1k, which the published class-to-image files don't hold: the words that
WordNet has for each, in the order of the classes' numbers."""

from pathlib import Path


def imagenet_labels() -> dict[int, str]:
    """Names by number, such as 207: "golden retriever" and 1: "goldfish, Carassius auratus"."""
    names = Path(__file__).with_name("imagenet_labels.txt").read_text(encoding="utf-8").splitlines()
    return dict(enumerate(names))
