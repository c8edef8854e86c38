# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Turns a folder of pictures into codes, one file per picture with 16 bytes per token, and shows what the codes keep.

    python examples/folder_to_codes.py my_pictures --output codes

`codes/NAME.safetensors` holds the packed bits (`uniwetok_hf.load_codes` reads them). `codes/sheet.jpg` shows the
pictures, their reconstructions, and the bits themselves. For training sets, with captions and several crops, use
`uniwetok encode-dataset`.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from uniwetok_hf import UniWeTokImageProcessor, UniWeTokModel, embedded_path, save_codes
from uniwetok_hf.cli import sheets
from uniwetok_hf.data.images import read_image
from uniwetok_hf.evaluation.metrics import psnr
from uniwetok_hf.visualization import bit_planes


TILE = 160


@torch.no_grad()
def encode(model: UniWeTokModel, processor: UniWeTokImageProcessor, path: Path, output: Path) -> Image.Image:
    """Writes the codes of a picture and returns its row of the sheet."""
    picture = read_image(path)
    inputs = processor(picture)
    codes = model.encode(inputs.pixel_values).codes  # [1, 128, h, w]
    save_codes(output / f"{path.stem}.safetensors", codes, model.config, inputs.original_sizes, inputs.content_sizes)
    sample = model.decode(codes, generator=torch.Generator().manual_seed(0)).sample
    result = processor.postprocess(sample, inputs.original_sizes, inputs.content_sizes)[0]

    tokens = codes.shape[2] * codes.shape[3]
    note = f"{path.name}: {picture.width} x {picture.height} pixels, {tokens} tokens, {16 * tokens} bytes, "
    note += f"{float(psnr([result], [picture])[0]):.1f} dB"
    cells = [sheets.framed(shown, TILE) for shown in (picture, result, bit_planes(codes[0], tile=24, gap=2))]
    return sheets.below([sheets.text_block(note, 13, 4 * TILE), sheets.beside(cells)])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder of PNG, JPEG or WebP pictures")
    parser.add_argument("--model", default=embedded_path("uniwetok-emoji"), help="pipeline folder or Hub name")
    parser.add_argument("--output", type=Path, default=Path("codes"))
    options = parser.parse_args(arguments)

    paths = sorted(path for path in options.pictures.iterdir() if path.suffix.lower() in (".png", ".jpg", ".webp"))
    if not paths:
        parser.error(f"{options.pictures} holds no PNG, JPEG or WebP pictures")
    options.output.mkdir(parents=True, exist_ok=True)
    model = UniWeTokModel.from_pretrained(options.model, subfolder="mllm", dtype=torch.float32).eval()
    processor = UniWeTokImageProcessor(stride=model.config.stride)
    rows = [encode(model, processor, path, options.output) for path in paths]
    sheets.page([sheets.grid(rows[:24], columns=2)]).save(options.output / "sheet.jpg", quality=92)
    print(f"{len(paths)} files of codes and sheet.jpg in {options.output}")


if __name__ == "__main__":
    main()
