# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What the bits of a token are, in pictures.

    python benchmarks/bit_pictures.py --output docs/assets

- `bit_planes.png`: the 128 bits of a picture's tokens, a small map of the picture for each;
- `bit_flips.jpg`: what is decoded when bits are flipped, a group of 8 after the other, in all tokens.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from uniwetok_hf import UniWeTokImageProcessor, UniWeTokModel, embedded_path
from uniwetok_hf.cli import sheets
from uniwetok_hf.cli.demo_sections import shipped_pictures
from uniwetok_hf.data.images import save_image
from uniwetok_hf.visualization import bit_planes


GROUP = 8
FLIPPED = (0, 1, 2, 3, 4, 6, 8, 12, 16)  # groups
TILE = 112


def decode(model: UniWeTokModel, processor: UniWeTokImageProcessor, codes: torch.Tensor) -> Image.Image:
    """Picture of codes [1, bits, h, w]; the noise is the same for all."""
    return processor.postprocess(model.decode(codes, generator=torch.Generator().manual_seed(0)).sample)[0]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=embedded_path("uniwetok-emoji") / "mllm", help="default: the embedded one's"
    )
    parser.add_argument("--output", default="docs/assets")
    options = parser.parse_args()
    model = UniWeTokModel.from_pretrained(options.model, dtype=torch.float32)
    processor = UniWeTokImageProcessor(stride=model.config.stride)

    rows = []
    for shipped in shipped_pictures()[:3]:
        codes = model.encode(processor(shipped.image).pixel_values).codes  # [1, bits, h, w]
        order = torch.randperm(codes.shape[1] // GROUP, generator=torch.Generator().manual_seed(0))
        cells = []
        for count in FLIPPED:
            flipped = codes.clone()
            for group in order[:count].tolist():
                flipped[:, group * GROUP : (group + 1) * GROUP] *= -1
            words = sheets.text_block(f"{GROUP * count} of {codes.shape[1]}", 13, TILE, sheets.GREY, 1)
            cells.append(sheets.below([sheets.framed(decode(model, processor, flipped), TILE), words], gap=3))
        rows.append(sheets.beside(cells))
    note = "The same groups of 8 bits are flipped in all tokens. Left nothing, right everything."
    page = sheets.page([sheets.section("Flipped bits", note, sheets.below(rows))])
    print(save_image(page, Path(options.output) / "bit_flips.jpg"))
    codes = model.encode(processor(shipped_pictures()[0].image).pixel_values).codes[0]
    print(save_image(bit_planes(codes), Path(options.output) / "bit_planes.png"))


if __name__ == "__main__":
    main()
