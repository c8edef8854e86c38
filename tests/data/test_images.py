import io
import struct
import zlib

import numpy as np
import pytest
from nasty_pictures import chunk, long_text, noise, png, stored, swapped_profile, turned, unwritable_exif
from PIL import Image, ImageCms

from uniwetok_hf.data.images import ImageReadError, read_image, save_image


def encoded(image, image_format, **options):
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def pixels(source):
    image = read_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def png_16_bit(values, colour_type, transparent=None):
    """A PNG of uint16 `values` [H, W] or [H, W, C], by hand: Pillow writes 16 bits for grey only."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
        + (chunk(b"tRNS", transparent) if transparent else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def grey_tiff(samples, bits, photometric, width):
    """An uncompressed little-endian one-strip grey TIFF of one row."""
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (278, 1), (279, len(samples))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (
        b"II*\0" + struct.pack("<I", 8 + len(samples)) + samples + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    )


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


@pytest.fixture
def deep():
    return np.random.default_rng(1).integers(0, 65536, (9, 7), dtype=np.uint16)


class TestKindsOfSource:
    def test_all_give_the_same_pixels(self, tmp_path, rgb):
        image = Image.fromarray(rgb)
        path = tmp_path / "photo.png"
        image.save(path)
        content = path.read_bytes()
        for source in (path, str(path), content, bytearray(content), io.BytesIO(content), image):
            np.testing.assert_array_equal(pixels(source), rgb)
        with open(path, "rb") as stream:
            np.testing.assert_array_equal(pixels(stream), rgb)

    def test_a_given_image_is_neither_changed_nor_shared(self, rgb):
        image = Image.fromarray(rgb)
        image.info["transparency"] = (1, 2, 3)
        read = read_image(image)
        read.putpixel((0, 0), (9, 9, 9))
        np.testing.assert_array_equal(np.asarray(image), rgb)
        assert image.info == {"transparency": (1, 2, 3)}
        assert read.info == {}

    def test_metadata_is_dropped(self, rgb):
        content = encoded(Image.fromarray(rgb), "PNG", icc_profile=b"a colour profile", dpi=(300, 300))
        assert Image.open(io.BytesIO(content)).info
        assert read_image(content).info == {}


class TestDepth:
    @pytest.mark.parametrize("mode", ["I;16", "I;16B"])
    @pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
    def test_16_bit_grey_keeps_the_high_byte(self, deep, mode, image_format):
        image = Image.frombytes(mode, (7, 9), deep.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
        np.testing.assert_array_equal(
            pixels(encoded(image, image_format)), np.repeat((deep >> 8)[..., None], 3, axis=-1)
        )
        np.testing.assert_array_equal(pixels(image)[..., 0], deep >> 8)

    def test_16_bit_values_of_8_bit_pictures_come_back_exactly(self):
        ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
        np.testing.assert_array_equal(pixels(png_16_bit(ramp.astype(np.uint16) * 257, colour_type=0))[..., 1], ramp)

    def test_32_bit_integers_within_16_bits(self, deep):
        image = Image.fromarray(deep.astype(np.int32))
        assert image.mode == "I"
        np.testing.assert_array_equal(pixels(encoded(image, "TIFF"))[..., 2], deep >> 8)

    def test_16_bit_grey_and_rgb_agree(self, deep):
        np.testing.assert_array_equal(
            pixels(png_16_bit(np.stack([deep] * 3, axis=-1), colour_type=2)), pixels(png_16_bit(deep, colour_type=0))
        )

    def test_16_bit_pgm(self, deep):
        content = b"P5 7 9 65535\n" + deep.astype(">u2").tobytes()
        np.testing.assert_array_equal(pixels(content)[..., 0], deep >> 8)

    def test_16_bit_alpha_on_white(self):
        values = np.array([[[65535, 0, 0, 65535], [65535, 0, 0, 0]]], dtype=np.uint16)
        np.testing.assert_array_equal(pixels(png_16_bit(values, colour_type=6)), [[[255, 0, 0], [255, 255, 255]]])

    def test_16_bit_grey_with_a_transparent_value(self):
        values = np.array([[700, 701, 60000]], dtype=np.uint16)
        content = png_16_bit(values, colour_type=0, transparent=struct.pack(">H", 700))
        np.testing.assert_array_equal(pixels(content)[0, :, 0], [255, 701 >> 8, 60000 >> 8])

    def test_12_bit_tiff(self):
        content = grey_tiff(bytes([0xFF, 0xF8, 0x00]), bits=12, photometric=1, width=2)  # 0xFFF, 0x800
        np.testing.assert_array_equal(pixels(content)[0, :, 0], [255, 128])

    def test_16_bit_tiff_where_white_is_zero(self):
        content = grey_tiff(struct.pack("<HH", 0, 65535), bits=16, photometric=0, width=2)
        np.testing.assert_array_equal(pixels(content)[0, :, 0], [255, 0])

    @pytest.mark.parametrize(
        "values, expected",
        [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 1.6, 255.0], [0, 2, 255]), ([0.0, 0.0, 0.0], [0, 0, 0])],
    )
    def test_float_tiff(self, values, expected):
        content = encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
        np.testing.assert_array_equal(pixels(content)[0], np.repeat(np.array(expected)[:, None], 3, axis=-1))

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 256.0])
    def test_float_values_out_of_range(self, value):
        content = encoded(Image.fromarray(np.array([[0.5, value]], dtype=np.float32)), "TIFF")
        with pytest.raises(ImageReadError, match=r"must lie in \[0, 1\] or in \[0, 255\]"):
            read_image(content)

    @pytest.mark.parametrize("value", [-1, 65536])
    def test_32_bit_integers_out_of_range(self, value):
        with pytest.raises(ImageReadError, match="must lie in 0..65535"):
            read_image(encoded(Image.fromarray(np.array([[7, value]], dtype=np.int32)), "TIFF"))

    def test_1_bit(self):
        image = Image.fromarray(np.array([[True, False, True]]))
        assert image.mode == "1"
        np.testing.assert_array_equal(pixels(encoded(image, "PNG"))[0, :, 0], [255, 0, 255])


class TestColour:
    @pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
    def test_cmyk(self, image_format):
        # Pillow writes CMYK JPEGs as Adobe does: inverted, with a marker.
        content = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), image_format)
        assert Image.open(io.BytesIO(content)).mode == "CMYK"
        cyan = pixels(content).astype(int)
        assert np.abs(cyan - [0, 255, 255]).max() <= 2

    def test_adobe_marker_is_what_the_cmyk_test_covers(self):
        assert b"Adobe" in encoded(Image.new("CMYK", (16, 16)), "JPEG")

    def test_palette(self, rgb):
        image = Image.fromarray(rgb).quantize(16)
        expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(pixels(encoded(image, "PNG")), expected)
        np.testing.assert_array_equal(pixels(encoded(image, "GIF")), expected)

    @pytest.mark.parametrize("image_format", ["PNG", "GIF"])
    def test_palette_with_transparency(self, image_format):
        image = Image.new("P", (3, 1))
        image.putpalette([0, 0, 0, 10, 20, 30, 200, 100, 50])
        image.putdata([0, 1, 2])
        content = encoded(image, image_format, transparency=1)
        np.testing.assert_array_equal(pixels(content), [[[0, 0, 0], [255, 255, 255], [200, 100, 50]]])

    def test_palette_with_alpha_per_colour(self):
        image = Image.new("P", (2, 1))
        image.putpalette([0, 0, 0, 100, 100, 100])
        image.putdata([0, 1])
        content = encoded(image, "PNG", transparency=bytes([51, 255]))
        np.testing.assert_array_equal(pixels(content)[0, :, 0], [204, 100])

    def test_rgba_on_white(self):
        values = np.array([[[10, 20, 30, 255], [0, 0, 0, 0], [0, 100, 200, 51]]], dtype=np.uint8)
        expected = [[[10, 20, 30], [255, 255, 255], [204, 224, 244]]]
        np.testing.assert_array_equal(pixels(encoded(Image.fromarray(values), "PNG")), expected)

    def test_grey_with_alpha_on_white(self):
        image = Image.merge("LA", [Image.new("L", (2, 2), 0), Image.new("L", (2, 2), 51)])
        np.testing.assert_array_equal(pixels(encoded(image, "PNG")), np.full((2, 2, 3), 204))

    def test_palette_with_alpha_channel(self):
        image = Image.new("RGBA", (2, 2), (0, 0, 0, 51)).convert("PA")
        assert image.mode == "PA"
        np.testing.assert_array_equal(pixels(image), np.full((2, 2, 3), 204))

    def test_rgb_with_one_transparent_colour(self, rgb):
        content = encoded(Image.fromarray(rgb), "PNG", transparency=tuple(int(value) for value in rgb[0, 0]))
        expected = rgb.copy()
        expected[(rgb == rgb[0, 0]).all(axis=-1)] = 255
        np.testing.assert_array_equal(pixels(content), expected)

    @pytest.mark.parametrize("mode", ["L", "YCbCr", "HSV", "RGBX"])
    def test_other_modes(self, mode, rgb):
        image = Image.fromarray(rgb).convert(mode)
        np.testing.assert_array_equal(pixels(image), np.asarray(image.convert("RGB")))


class TestFrameAndOrientation:
    @pytest.mark.parametrize("image_format, options", [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
    def test_first_frame_of_an_animation(self, image_format, options):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
        content = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], duration=50, **options)
        assert Image.open(io.BytesIO(content)).n_frames == 3
        np.testing.assert_array_equal(pixels(content), np.full((8, 8, 3), [255, 0, 0]))

    @pytest.mark.parametrize("orientation, turn", [(3, 2), (6, 3), (8, 1)])
    def test_exif_rotation(self, rgb, orientation, turn):
        exif = Image.Exif()
        exif[0x0112] = orientation
        np.testing.assert_array_equal(pixels(encoded(Image.fromarray(rgb), "PNG", exif=exif)), np.rot90(rgb, turn))
        jpeg = read_image(encoded(Image.fromarray(rgb), "JPEG", exif=exif))
        assert jpeg.size == ((7, 9) if turn == 2 else (9, 7))

    def test_exif_rotation_of_16_bit_grey(self, deep):
        exif = Image.Exif()
        exif[0x0112] = 6
        image = Image.fromarray(deep)
        np.testing.assert_array_equal(pixels(encoded(image, "PNG", exif=exif))[..., 0], np.rot90(deep >> 8, 3))


class TestTransparentColourInTheDepthOfTheFile:
    def test_16_bit_rgb(self):
        values = np.array([[[0x1234, 0x5678, 0x9ABC], [0x1234, 0x5678, 0x9ABD], [0x1200, 0x5600, 0x9A00]]], np.uint16)
        content = png([values[0].astype(">u2").tobytes()], 3, 16, 2, values[0, 0].astype(">u2").tobytes())
        expected = [[[255, 255, 255], [0x12, 0x56, 0x9A], [0x12, 0x56, 0x9A]]]
        np.testing.assert_array_equal(pixels(content), expected)
        np.testing.assert_array_equal(pixels(Image.open(io.BytesIO(content))), expected)

    def test_16_bit_rgb_loaded_before(self):
        content = png([bytes([0x12, 0x34] * 3 + [0x13, 0x34] * 3)], 2, 16, 2, bytes([0x12, 0x34] * 3))
        image = Image.open(io.BytesIO(content))
        image.load()
        np.testing.assert_array_equal(pixels(image), [[[255] * 3, [0x13] * 3]])

    @pytest.mark.parametrize("bits", [2, 4])
    def test_grey_of_few_bits(self, bits):
        row = {2: bytes([0b00011011]), 4: bytes([0x01, 0x5F])}[bits]
        values = {2: [0, 85, 255, 255], 4: [0, 17, 255, 255]}[bits]  # the third is transparent
        content = png([row], 4, bits, 0, bytes([0, {2: 2, 4: 5}[bits]]))
        for source in (content, Image.open(io.BytesIO(content))):
            np.testing.assert_array_equal(pixels(source)[0, :, 0], values)

    @pytest.mark.parametrize("key", [0, 1])
    def test_1_bit(self, key):
        np.testing.assert_array_equal(pixels(png([b"\x40"], 2, 1, 0, bytes([0, key])))[0, 1], [255] * 3)
        np.testing.assert_array_equal(pixels(png([b"\x40"], 2, 1, 0, bytes([0, key])))[0, 0, 0], 0 if key else 255)

    def test_8_bit_rgb_counts_its_low_bits(self):
        content = png([bytes([1, 2, 3, 4, 5, 6])], 2, 8, 2, bytes([7, 1, 7, 2, 7, 3]))
        np.testing.assert_array_equal(pixels(content), [[[255] * 3, [4, 5, 6]]])


class TestMetadata:
    """It never costs a picture."""

    def test_exif_that_cannot_be_written_still_turns(self, rgb):
        expected = pixels(encoded(Image.fromarray(rgb), "JPEG", exif=turned(6), quality=95))
        content = encoded(Image.fromarray(rgb), "JPEG", exif=unwritable_exif(), quality=95)
        np.testing.assert_array_equal(pixels(content), expected)
        assert read_image(content).size == (9, 7)

    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    @pytest.mark.parametrize("seed", range(30))
    def test_random_exif(self, seed, rgb):
        content = np.random.default_rng(seed).integers(0, 256, 60, dtype=np.uint8).tobytes()
        if seed % 2:
            content = bytearray(unwritable_exif())
            content[8 + seed % 30] ^= 1 << seed % 8
        picture = read_image(encoded(Image.fromarray(rgb), "PNG", exif=bytes(content)))
        assert sorted(picture.size) == [7, 9]

    @pytest.mark.parametrize("where", ["before", "after"])
    @pytest.mark.parametrize(
        "extra",
        [
            long_text(),
            long_text(9)[:-4] + b"0000",
            chunk(b"pHYs", b"1"),
            chunk(b"iCCP", b"a name\0\0" + zlib.compress(b"x" * 2**21)),
            chunk(b"iTXt", b"no terminator"),
        ],
        ids=["2 MB", "wrong checksum", "short", "2 MB of profile", "text without end"],
    )
    def test_chunks_of_a_png(self, where, extra):
        values = noise(8, 8)
        content = png([row.tobytes() for row in values], 8, 8, 2, **{where: extra})
        np.testing.assert_array_equal(pixels(content), values)

    def test_a_turn_survives_long_text(self):
        values = noise(8, 16)
        exif = chunk(b"eXIf", turned(6).tobytes()[6:])
        content = png([row.tobytes() for row in values], 16, 8, 2, before=exif + long_text())
        np.testing.assert_array_equal(pixels(content), np.rot90(values, 3))

    def test_damaged_pixels_stay_an_error_beside_long_text(self):
        content = png([row.tobytes() for row in noise(64, 64)], 64, 8, 2, before=long_text())
        with pytest.raises(ImageReadError):
            read_image(content[: content.index(b"IDAT") + 20])


class TestColourProfile:
    def test_colours_become_those_of_srgb(self):
        content = stored(Image.new("RGB", (4, 4), "red"), icc_profile=swapped_profile())
        assert np.abs(pixels(content).astype(int) - [0, 0, 255]).max() <= 1

    def test_also_under_alpha(self):
        content = stored(Image.new("RGBA", (4, 4), (255, 0, 0, 51)), icc_profile=swapped_profile())
        assert np.abs(pixels(content).astype(int) - [204, 204, 255]).max() <= 1

    def test_srgb_is_not_touched(self, rgb):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        np.testing.assert_array_equal(pixels(stored(Image.fromarray(rgb), icc_profile=profile)), rgb)

    def test_one_of_another_space_or_none_is_not_applied(self, rgb):
        for image, profile in ((Image.fromarray(rgb[..., 0]), swapped_profile()), (Image.fromarray(rgb), b"none")):
            np.testing.assert_array_equal(pixels(stored(image, icc_profile=profile)), np.asarray(image.convert("RGB")))

    def test_twice_is_once(self):
        once = read_image(stored(Image.new("RGB", (4, 4), "red"), icc_profile=swapped_profile()))
        np.testing.assert_array_equal(pixels(once), np.asarray(once))

    def test_lab(self):
        lab = ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(
            Image.new("RGB", (4, 4), (200, 40, 90)), ImageCms.createProfile("sRGB"), lab, outputMode="LAB"
        )
        assert np.abs(pixels(image).astype(int) - [200, 40, 90]).max() <= 4


class TestErrors:
    def check(self, source, *parts):
        with pytest.raises(ImageReadError) as caught:
            read_image(source)
        message = str(caught.value)
        assert "\n" not in message
        for part in parts:
            assert part in message

    def test_missing_file(self, tmp_path):
        self.check(tmp_path / "absent.png", "absent.png", "no such file")

    def test_folder(self, tmp_path):
        self.check(tmp_path, tmp_path.name, "folder")

    def test_empty_file(self, tmp_path):
        (tmp_path / "empty.png").touch()
        self.check(tmp_path / "empty.png", "empty.png", "is empty")

    def test_not_a_picture(self, tmp_path):
        (tmp_path / "notes.png").write_text("not a picture at all")
        self.check(tmp_path / "notes.png", "notes.png", "not a picture")

    @pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
    @pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
    def test_truncated_file(self, tmp_path, image_format, kept):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        content = encoded(Image.fromarray(noise), image_format)
        path = tmp_path / "cut.bin"
        path.write_bytes(content[: int(len(content) * kept)])
        self.check(path, "cut.bin", "truncated")

    def test_broken_checksum(self, rgb):
        content = bytearray(encoded(Image.fromarray(rgb), "PNG"))
        content[20] ^= 255  # inside the header: its checksum no longer fits
        self.check(bytes(content), "the given bytes")

    def test_too_many_pixels(self, monkeypatch, rgb):
        content = encoded(Image.fromarray(rgb), "PNG")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)  # the picture has 63, more than twice as many
        self.check(content, "too many pixels", "63")

    def test_no_pixels(self):
        self.check(Image.new("RGB", (0, 5)), "no pixels")

    def test_unknown_kind_of_source(self):
        self.check(5, "source must be a path", "int")

    def test_it_is_a_value_error(self):
        assert issubclass(ImageReadError, ValueError)


class TestSaveImage:
    def test_round_trip_and_no_leftovers(self, tmp_path, rgb):
        path = save_image(Image.fromarray(rgb), tmp_path / "new" / "folder" / "out.png")
        np.testing.assert_array_equal(pixels(path), rgb)
        assert [entry.name for entry in path.parent.iterdir()] == ["out.png"]

    @pytest.mark.parametrize(
        "name, image_format", [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP"), ("a.tif", "TIFF")]
    )
    def test_format_by_suffix(self, tmp_path, rgb, name, image_format):
        with Image.open(save_image(Image.fromarray(rgb), str(tmp_path / name))) as image:
            assert image.format == image_format
            assert image.size == (7, 9)

    @pytest.mark.parametrize("name", ["picture", "picture.xyz", "picture.txt"])
    def test_unknown_suffix(self, tmp_path, rgb, name):
        with pytest.raises(ValueError, match="suffix"):
            save_image(Image.fromarray(rgb), tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    def test_a_failed_save_keeps_the_old_file(self, tmp_path, rgb):
        path = save_image(Image.fromarray(rgb), tmp_path / "out.jpg")
        before = path.read_bytes()
        with pytest.raises(ValueError, match="RGBA cannot be saved as JPEG"):
            save_image(Image.new("RGBA", (4, 4)), path)
        assert path.read_bytes() == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["out.jpg"]

    def test_a_folder_in_the_way(self, tmp_path, rgb):
        (tmp_path / "out.png").mkdir()
        with pytest.raises(ValueError, match="is a folder"):
            save_image(Image.fromarray(rgb), tmp_path / "out.png")
        assert [entry.name for entry in tmp_path.iterdir()] == ["out.png"]
