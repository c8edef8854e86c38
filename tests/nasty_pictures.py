"""Picture files in which something is unusual, small and the same every time."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(
    rows: list[bytes],
    width: int,
    bits: int,
    colour_type: int,
    transparent: bytes = b"",
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG by hand, of any depth; `before` and `after` are further chunks around the pixels."""
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"tRNS", transparent) if transparent else b"")
        + before
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
        + after
        + chunk(b"IEND", b"")
    )


def long_text(size: int = 2**21) -> bytes:
    """A chunk of compressed text, larger than Pillow reads."""
    return chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * size))


def stored(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def noise(height: int = 48, width: int = 80, channels: int = 3, dtype=np.uint8, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(
        0, np.iinfo(dtype).max + 1, (height // 8, width // 8, channels), dtype
    )
    return values.repeat(8, 0).repeat(8, 1)  # flat squares, so that a crop or a turn is easily seen


def turned(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def unwritable_exif() -> bytes:
    """EXIF with an orientation, and with a text where a number belongs: Pillow reads it and can't write it."""
    entries = struct.pack("<HHI4s", 0x0112, 3, 1, struct.pack("<HH", 6, 0))
    entries += struct.pack("<HHI4s", 0x0100, 2, 4, b"abc\0")  # ImageWidth as ASCII
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)


def swapped_profile() -> bytes:
    """sRGB under another name with two primaries swapped: red becomes blue."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(content[132 + 12 * i : 136 + 12 * i]): i for i in range(struct.unpack(">I", content[128:132])[0])}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    content[132 + 12 * red : 136 + 12 * red], content[132 + 12 * blue : 136 + 12 * blue] = b"bXYZ", b"rXYZ"
    at, size = struct.unpack(">II", content[136 + 12 * tags[b"desc"] : 144 + 12 * tags[b"desc"]])
    content[at : at + size] = content[at : at + size].replace(b"s\0R\0G\0B", b"x\0R\0G\0B").replace(b"sRGB", b"xRGB")
    return bytes(content)


def pictures() -> dict[str, bytes]:
    """Name -> file."""
    colours, grey = Image.fromarray(noise()), Image.fromarray(noise()[..., 0])
    deep = noise(dtype=np.uint16)
    rows16 = [row.astype(">u2").tobytes() for row in deep]
    key16 = deep[0, 0].astype(">u2").tobytes()
    nibbles = noise(channels=1)[..., 0] % 16
    palette = colours.quantize(16)
    return {
        "orientation in JPEG": stored(colours, "JPEG", exif=turned()),
        "orientation in PNG": stored(colours, exif=turned(5)),
        "orientation in WebP": stored(colours, "WEBP", lossless=True, exif=turned(8)),
        "EXIF that can't be written": stored(colours, "JPEG", exif=unwritable_exif()),
        "damaged EXIF": stored(colours, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"),
        "alpha": stored(Image.fromarray(noise(channels=4))),
        "grey with alpha": stored(Image.fromarray(noise(channels=2), "LA")),
        "palette": stored(palette),
        "palette with a transparent colour": stored(palette, transparency=3),
        "GIF of two frames": stored(palette, "GIF", save_all=True, append_images=[colours.rotate(180).quantize(16)]),
        "one transparent colour": stored(colours, transparency=tuple(int(v) for v in noise()[0, 0])),
        "16 bits grey": stored(Image.fromarray(deep[..., 0])),
        "16 bits grey, transparent": png(
            [row[:, 0].astype(">u2").tobytes() for row in deep], 80, 16, 0, deep[0, 0, 0].astype(">u2").tobytes()
        ),
        "16 bits RGB": png(rows16, 80, 16, 2),
        "16 bits RGB, transparent": png(rows16, 80, 16, 2, key16),
        "4 bits grey, transparent": png(
            [(row[::2] * 16 + row[1::2]).astype(np.uint8).tobytes() for row in nibbles], 80, 4, 0, b"\0\5"
        ),
        "2 bits grey, transparent": png([bytes([0b00011011] * 20)] * 48, 80, 2, 0, b"\0\2"),
        "1 bit": stored(grey.convert("1")),
        "CMYK": stored(colours.convert("CMYK"), "TIFF"),
        "LAB": stored(
            ImageCms.profileToProfile(
                colours, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
            ),
            "TIFF",
        ),
        "floats": stored(Image.fromarray(noise()[..., 0].astype(np.float32)), "TIFF"),
        "colour profile": stored(colours, icc_profile=swapped_profile()),
        "colour profile of another space": stored(grey, icc_profile=swapped_profile()),
        "broken colour profile": stored(colours, icc_profile=b"no profile at all"),
        "long text before": png([row.tobytes() for row in noise()], 80, 8, 2, before=long_text()),
        "long text after": png([row.tobytes() for row in noise()], 80, 8, 2, after=long_text()),
        "damaged text": png([row.tobytes() for row in noise()], 80, 8, 2, before=long_text(9)[:-4] + b"0000"),
        "odd physical size": png([row.tobytes() for row in noise()], 80, 8, 2, before=chunk(b"pHYs", b"\1")),
    }
