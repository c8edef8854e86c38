# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What gradient accumulation changes: the batch entropy, whose histogram sees one micro-batch at a time.

    python benchmarks/accumulation.py DATA

Latents of 64 pictures of 64x64 by the embedded model, whole and in micro-batches: the batch entropy in nats (the
mean of the micro-batches), and the cosine between the gradients of the entropy loss.
"""

import argparse

import torch
from torch.nn import functional as F

from uniwetok_hf import UniWeTokModel, embedded_path
from uniwetok_hf.data.sources import PictureSource
from uniwetok_hf.losses.entropy import entropy_loss
from uniwetok_hf.training.picture_batches import validation_pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder of pictures, or another source that `uniwetok_hf.data.sources` opens")
    options = parser.parse_args()
    model = UniWeTokModel.from_pretrained(embedded_path("uniwetok-emoji"), subfolder="mllm", dtype=torch.float32)
    pictures = validation_pictures(PictureSource(options.data), 64, 64, 64) / 127.5 - 1
    with torch.no_grad():
        latents = model.encode(pictures).latents
    latents.requires_grad_()
    (whole,) = torch.autograd.grad(entropy_loss(latents).loss, latents)
    print("| micro-batches | batch entropy | cosine of gradients |\n| ---: | ---: | ---: |")
    for count in (1, 2, 4, 8, 16):
        parts = [entropy_loss(part) for part in latents.chunk(count)]
        (gradient,) = torch.autograd.grad(sum(part.loss for part in parts) / count, latents)
        cosine = F.cosine_similarity(gradient.flatten(), whole.flatten(), dim=0).item()
        entropy = sum(part.batch_entropy for part in parts).item() / count
        print(f"| {count} | {entropy:.3f} | {cosine:.3f} |")


if __name__ == "__main__":
    main()
