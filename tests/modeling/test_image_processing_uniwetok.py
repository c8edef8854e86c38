import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BatchFeature

from uniwetok_hf.modeling.image_processing_uniwetok import UniWeTokImageProcessor, plan_sizes, to_uint8


SIZES = [(1, 1), (31, 33), (32, 32), (33, 31), (5, 200), (640, 427)]


def noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ramp(height, width):
    """A smooth picture, which resizing changes little."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), np.full((height, width), 99)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def levels(picture):
    """Pixel values [3, H, W] in [-1, 1] -> the levels 0..255 they stand for, exactly."""
    return np.rint((np.asarray(picture) + 1) * 127.5).astype(int)


def assert_same_picture(image, expected):
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


@pytest.fixture
def processor():
    return UniWeTokImageProcessor()


class TestValues:
    def test_all_levels_exactly(self, processor):
        image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).resize((32, 32), Image.Resampling.BOX)
        values = processor(image).pixel_values
        assert values.dtype == torch.float32
        expected = np.asarray(image).astype(np.float32) / np.float32(127.5) - np.float32(1)
        for channel in values[0]:
            np.testing.assert_array_equal(channel.numpy(), expected)
        assert values.min() == -1 and values.max() == 1

    def test_postprocess_truncates_as_published(self, processor):
        values = torch.tensor([-5.0, -1.0, -0.996, 0.0, 0.001, 0.999, 1.0, 5.0]).expand(1, 3, 1, 8)
        pixels = np.asarray(processor.postprocess(values)[0])[0, :, 0]
        # 127.5 x + 128 = .., 0.5, 1.01, 128, 128.1275, 255.37, 255.5 -> 255, ..
        np.testing.assert_array_equal(pixels, [0, 0, 1, 128, 128, 255, 255, 255])

    @pytest.mark.parametrize("shape", [(3, 1, 8), (2, 3, 2, 8)])
    def test_to_uint8_of_any_shape(self, processor, shape):
        values = torch.linspace(-1.1, 1.1, 8).expand(shape)
        pixels = to_uint8(values)
        assert pixels.dtype == torch.uint8 and pixels.shape == shape
        # (127.5 x + 128) of -1.1, -0.786, -0.471, -0.157, 0.157, 0.471, 0.786, 1.1
        np.testing.assert_array_equal(pixels.flatten()[:8], [0, 27, 67, 107, 148, 188, 228, 255])

    def test_postprocess_floats(self, processor):
        values = torch.tensor([-5.0, -1.0, 0.0, 0.5, 1.0, 5.0]).expand(2, 3, 1, 6)
        expected = [0.0, 0.0, 0.5, 0.75, 1.0, 1.0]
        as_torch = processor.postprocess(values, output_type="pt")
        assert as_torch.shape == (2, 3, 1, 6) and as_torch.dtype == torch.float32
        np.testing.assert_array_equal(as_torch[1, 2, 0], expected)
        as_numpy = processor.postprocess(values, output_type="np")
        assert as_numpy.shape == (2, 1, 6, 3) and as_numpy.dtype == np.float32
        np.testing.assert_array_equal(as_numpy[1, 0, :, 2], expected)

    def test_without_rescaling(self, processor):
        image = noise(32, 32)
        values = processor(image, do_rescale=False).pixel_values
        np.testing.assert_array_equal(values[0].permute(1, 2, 0), np.asarray(image))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_samples(self, processor, dtype):
        assert np.asarray(processor.postprocess(torch.ones(1, 3, 2, 2, dtype=dtype))[0]).min() == 255


class TestRoundTrip:
    @pytest.mark.parametrize("size", SIZES)
    def test_pad_gives_back_every_pixel(self, processor, size):
        image = noise(*size)
        inputs = processor(image)
        height, width = inputs.pixel_values.shape[-2:]
        assert (height, width) == tuple(-(-side // 32) * 32 for side in size)
        assert inputs.original_sizes == inputs.content_sizes == [size]

        padded = levels(inputs.pixel_values[0])
        rows, columns = (
            np.minimum(np.arange(length), side - 1) for length, side in zip((height, width), size, strict=True)
        )
        np.testing.assert_array_equal(padded, np.moveaxis(np.asarray(image), -1, 0)[:, rows][:, :, columns])

        (restored,) = processor.postprocess(**inputs)
        assert_same_picture(restored, image)

    @pytest.mark.parametrize("fit", ["pad", "resize"])
    @pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
    @pytest.mark.parametrize("size", [(31, 33), (100, 70), (640, 427)])
    def test_smooth_pictures_come_back_through_any_scaling(self, fit, output_type, size):
        processor = UniWeTokImageProcessor(fit=fit, size={"longest_edge": 64})
        image = ramp(*size)
        inputs = processor(image)
        assert max(inputs.pixel_values.shape[-2:]) <= 64
        (restored,) = processor.postprocess(**inputs, output_type=output_type)
        if output_type == "pt":
            restored = restored.permute(1, 2, 0).numpy()
        scale = 1 if output_type == "pil" else 255
        error = np.abs(np.asarray(restored) * np.float64(scale) - np.asarray(image))
        assert error.shape == (*size, 3)
        assert error.mean() < 1.5 and error.max() < 20

    def test_resizing_back_agrees_between_output_types(self, processor):
        sample = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
        sizes = {"original_sizes": [(45, 77)], "content_sizes": [(30, 51)]}
        image = np.asarray(processor.postprocess(sample, **sizes)[0]).astype(float)
        as_numpy = processor.postprocess(sample, **sizes, output_type="np")[0]
        as_torch = processor.postprocess(sample, **sizes, output_type="pt")[0].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(as_numpy, as_torch)
        assert np.abs(as_numpy * 255 - image).max() <= 0.5001

    def test_samples_are_clamped_before_resizing(self, processor):
        sample = torch.full((1, 3, 32, 32), -1.0)
        sample[..., 16:] = 1.0
        sizes = [(40, 50)]
        assert_same_picture(processor.postprocess(9 * sample, sizes)[0], processor.postprocess(sample, sizes)[0])

    def test_crop_is_not_undone(self):
        processor = UniWeTokImageProcessor(fit="crop")
        image = noise(70, 101)
        inputs = processor(image)
        assert inputs.original_sizes == inputs.content_sizes == [(64, 96)]
        (restored,) = processor.postprocess(**inputs)
        assert_same_picture(restored, image.crop((2, 3, 98, 67)))

    @pytest.mark.parametrize("fit", ["pad", "resize", "crop"])
    def test_multiples_of_the_stride_are_untouched(self, fit):
        image = noise(64, 96)
        inputs = UniWeTokImageProcessor(fit=fit)(image)
        np.testing.assert_array_equal(levels(inputs.pixel_values[0]), np.moveaxis(np.asarray(image), -1, 0))
        assert inputs.original_sizes == inputs.content_sizes == [(64, 96)]

    def test_other_strides(self):
        processor = UniWeTokImageProcessor(stride=8)
        image = noise(9, 17)
        inputs = processor(image)
        assert inputs.pixel_values.shape == (1, 3, 16, 24)
        assert_same_picture(processor.postprocess(**inputs)[0], image)

    def test_float_output_goes_in_again(self, processor):
        image = noise(20, 50)
        inputs = processor(image)
        for output_type in ("np", "pt"):
            again = processor(processor.postprocess(**inputs, output_type=output_type))
            torch.testing.assert_close(again.pixel_values, inputs.pixel_values, rtol=0, atol=0)


class TestPlanSizes:
    @pytest.mark.parametrize(
        "picture, fit, size, scaled, target",
        [
            ((1, 1), "pad", None, (1, 1), (32, 32)),
            ((640, 427), "pad", None, (640, 427), (640, 448)),
            ((1, 1), "resize", None, (32, 32), (32, 32)),
            ((47, 48), "resize", None, (32, 64), (32, 64)),
            ((640, 427), "resize", None, (640, 416), (640, 416)),
            ((640, 427), "crop", None, (640, 427), (640, 416)),
            ((640, 427), "pad", {"longest_edge": 320}, (320, 214), (320, 224)),
            ((640, 427), "resize", {"longest_edge": 320}, (320, 224), (320, 224)),
            ((640, 427), "crop", {"longest_edge": 320}, (320, 214), (320, 192)),
            ((20, 30), "pad", {"longest_edge": 320}, (20, 30), (32, 32)),
            ((1, 9999), "pad", {"longest_edge": 320}, (1, 320), (32, 320)),
            ((640, 427), "pad", {"height": 64, "width": 64}, (64, 43), (64, 64)),
            ((10, 20), "pad", {"height": 64, "width": 96}, (48, 96), (64, 96)),
            ((640, 427), "resize", {"height": 64, "width": 96}, (64, 96), (64, 96)),
            ((640, 427), "crop", {"height": 64, "width": 96}, (144, 96), (64, 96)),
            ((10, 20), "crop", {"height": 64, "width": 64}, (64, 128), (64, 64)),
        ],
    )
    def test_table(self, picture, fit, size, scaled, target):
        assert plan_sizes(*picture, stride=32, fit=fit, size=size) == (scaled, target)
        processor = UniWeTokImageProcessor(fit=fit, size=size)
        assert processor(noise(*picture)).pixel_values.shape[-2:] == target

    @pytest.mark.parametrize("fit", ["pad", "resize", "crop"])
    @pytest.mark.parametrize("size", [None, {"longest_edge": 96}, {"height": 64, "width": 160}])
    def test_scaled_is_inside_or_covers(self, fit, size):
        sides = [32, 33, 47, 63, 64, 65, 127, 300, 1001]
        for height in sides:
            for width in sides:
                if fit == "crop" and size == {"longest_edge": 96} and max(height, width) > 3 * min(height, width):
                    continue  # would be smaller than one stride
                scaled, target = plan_sizes(height, width, 32, fit, size)
                assert all(side % 32 == 0 and side > 0 for side in target)
                if fit == "pad":
                    assert scaled[0] <= target[0] and scaled[1] <= target[1]
                elif fit == "crop":
                    assert scaled[0] >= target[0] and scaled[1] >= target[1]
                else:
                    assert scaled == target
                if size == {"longest_edge": 96}:
                    assert max(target) <= 96


class TestExactSize:
    @pytest.mark.parametrize(
        "size, halved, scaled, corner",
        [
            ((100, 70), (50, 35), (46, 32), (7, 0)),  # 70 >= 2 * 32, then 35 is not; 50 * 32 / 35 = 45.7
            ((64, 90), (32, 45), (32, 45), (0, 6)),  # exactly twice
            ((90, 64), (45, 32), (45, 32), (6, 0)),
        ],
    )
    def test_crop_follows_the_adm_recipe(self, size, halved, scaled, corner):
        image = noise(*size)
        expected = image.resize(halved[::-1], Image.Resampling.BOX).resize(scaled[::-1], Image.Resampling.BICUBIC)
        expected = np.asarray(expected)[corner[0] : corner[0] + 32, corner[1] : corner[1] + 32]
        inputs = UniWeTokImageProcessor(fit="crop", size={"height": 32, "width": 32})(image)
        np.testing.assert_array_equal(levels(inputs.pixel_values[0]), np.moveaxis(expected, -1, 0))
        assert inputs.original_sizes == inputs.content_sizes == [(32, 32)]

    def test_pad_repeats_the_edge(self):
        image = ramp(64, 32)
        processor = UniWeTokImageProcessor(size={"height": 32, "width": 32})
        inputs = processor(image)
        assert inputs.original_sizes == [(64, 32)]
        assert inputs.content_sizes == [(32, 16)]
        values = inputs.pixel_values[0]
        assert torch.equal(values[:, :, 16:], values[:, :, 15:16].expand(-1, -1, 16))
        assert processor.postprocess(**inputs)[0].size == (32, 64)

    @pytest.mark.parametrize("size", [64, (64, 64), {"height": 64, "width": 64}])
    def test_ways_to_write_it(self, size):
        assert UniWeTokImageProcessor(size=size)(noise(10, 12)).pixel_values.shape == (1, 3, 64, 64)

    def test_for_one_call(self, processor):
        assert processor(noise(10, 12), size={"height": 64, "width": 96}).pixel_values.shape == (1, 3, 64, 96)
        assert processor(noise(10, 12)).pixel_values.shape == (1, 3, 32, 32)
        exact = UniWeTokImageProcessor(size=64, fit="resize")
        assert exact(noise(40, 90), size=None, fit="crop").pixel_values.shape == (1, 3, 32, 64)


class TestBatches:
    def test_mixed_sizes_are_lists(self, processor):
        images = [noise(31, 33, seed=1), noise(100, 40, seed=2), noise(32, 64, seed=3)]
        inputs = processor(images)
        assert [tuple(values.shape) for values in inputs.pixel_values] == [(3, 32, 64), (3, 128, 64), (3, 32, 64)]
        for output_type in ("np", "pt"):
            restored = processor.postprocess(**inputs, output_type=output_type)
            assert isinstance(restored, list)
        for restored, image in zip(processor.postprocess(**inputs), images, strict=True):
            assert_same_picture(restored, image)

    def test_one_output_size_is_a_tensor(self, processor):
        images = [noise(31, 33, seed=1), noise(20, 40, seed=2)]
        inputs = processor(images)
        assert isinstance(inputs, BatchFeature)
        assert inputs.pixel_values.shape == (2, 3, 32, 64)
        for restored, image in zip(processor.postprocess(**inputs), images, strict=True):
            assert_same_picture(restored, image)

    def test_return_tensors(self, processor):
        image = noise(20, 20)
        expected = processor(image).pixel_values.numpy()
        as_numpy = processor([image, image], return_tensors="np").pixel_values
        np.testing.assert_array_equal(as_numpy, np.concatenate([expected, expected]))
        mixed = processor([image, noise(40, 20)], return_tensors="np").pixel_values
        assert [values.shape for values in mixed] == [(3, 32, 32), (3, 64, 32)]
        plain = processor(image, return_tensors=None).pixel_values
        assert isinstance(plain, list)
        np.testing.assert_array_equal(plain[0], expected[0])

    def test_moving_and_casting(self, processor):
        for images in ([noise(20, 20)], [noise(20, 20), noise(40, 40)]):
            inputs = processor(images).to("cpu", torch.bfloat16)
            assert all(values.dtype == torch.bfloat16 for values in inputs.pixel_values)
            assert inputs.original_sizes == [image.size[::-1] for image in images]
            assert all(type(side) is int for size in inputs.content_sizes for side in size)

    def test_sizes_may_come_back_as_tensors(self, processor):
        images = [noise(31, 33, seed=1), noise(20, 40, seed=2)]
        inputs = processor(images)
        sizes = torch.tensor(inputs.original_sizes)
        for restored, image in zip(
            processor.postprocess(inputs.pixel_values, sizes, sizes.numpy()), images, strict=True
        ):
            assert_same_picture(restored, image)


class TestKindsOfInput:
    def test_same_picture_same_values(self, processor):
        image = noise(40, 50)
        array = np.asarray(image)
        expected = processor(image).pixel_values
        inputs = [
            [image],
            [[image]],
            array,
            array[None],
            array.transpose(2, 0, 1),
            array.astype(np.int64),
            array / 255,
            (array / 255).astype(np.float32),
            torch.from_numpy(array.transpose(2, 0, 1).copy()),
            torch.from_numpy(array.transpose(2, 0, 1).copy())[None],
            (torch.from_numpy(array.transpose(2, 0, 1).copy()) / 255).requires_grad_(),
        ]
        for given in inputs:
            values = processor(given).pixel_values
            assert torch.equal(values, expected)
            assert not values.requires_grad

    def test_nested_lists_are_flattened(self, processor):
        images = [noise(20, 20, seed=seed) for seed in range(3)]
        inputs = processor([[images[0]], [], [images[1], np.asarray(images[2])]])
        assert inputs.pixel_values.shape == (3, 3, 32, 32)
        for restored, image in zip(processor.postprocess(**inputs), images, strict=True):
            assert_same_picture(restored, image)

    def test_path(self, processor, tmp_path):
        noise(20, 30).save(tmp_path / "photo.png")
        assert torch.equal(processor(str(tmp_path / "photo.png")).pixel_values, processor(noise(20, 30)).pixel_values)

    def test_bfloat16_tensor(self, processor):
        assert processor(torch.ones(3, 32, 32, dtype=torch.bfloat16)).pixel_values.min() == 1

    def test_channel_order_can_be_told(self, processor):
        array = np.zeros((3, 32, 3), dtype=np.uint8)
        assert processor(array, input_data_format="channels_last").original_sizes == [(3, 32)]
        assert processor(array, input_data_format="channels_first").original_sizes == [(32, 3)]

    @pytest.mark.parametrize("kind", ["RGBA", "LA", "PA", "palette", "array", "float array", "tensor"])
    def test_transparency_is_on_white(self, processor, kind):
        image = Image.new("RGBA", (32, 32), (0, 0, 0, 51))
        if kind in ("LA", "PA"):
            image = image.convert(kind)
        elif kind == "palette":
            image = Image.new("P", (32, 32))
            image.putpalette([0, 0, 0])
            image.info["transparency"] = bytes([51])
        elif kind != "RGBA":
            image = np.asarray(image)
            image = image / 255 if kind == "float array" else image
            image = torch.from_numpy(image.transpose(2, 0, 1).copy()) if kind == "tensor" else image
        values = processor(image).pixel_values
        assert values.shape == (1, 3, 32, 32)
        np.testing.assert_array_equal(levels(values), 204)

    @pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
    def test_modes_are_converted(self, processor, mode):
        image = noise(20, 20).convert(mode)
        assert_same_picture(processor.postprocess(**processor(image))[0], image.convert("RGB"))

    def test_grey_arrays(self, processor):
        grey = np.asarray(noise(20, 24))[..., :1]
        expected = np.repeat(np.moveaxis(grey, -1, 0), 3, axis=0)
        for given in (grey, torch.from_numpy(grey.transpose(2, 0, 1).copy())):
            np.testing.assert_array_equal(levels(processor(given).pixel_values[0])[:, :20, :24], expected)


class TestErrors:
    @pytest.mark.parametrize(
        "options, message",
        [
            ({"fit": "stretch"}, "fit: must be one of pad, resize, crop, got 'stretch'"),
            ({"stride": 0}, "stride: must be a positive integer"),
            (
                {"size": {"height": 64, "width": 65}},
                "size: width must be a positive multiple of the stride 32, got 65",
            ),
            ({"size": {"longest_edge": 100}}, "size: longest_edge must be a positive multiple"),
            ({"size": {"shortest_edge": 64}}, "size: must be"),
            ({"size": {"height": 0, "width": 32}}, "size: height must be a positive"),
            ({"do_normalize": True}, "do_normalize: not an option"),
            ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean: not an option"),
            ({"rescale_factor": 1 / 255}, "rescale_factor: not an option"),
            ({"do_center_crop": True, "crop_size": 32}, "do_center_crop: not an option"),
        ],
    )
    def test_options(self, processor, options, message):
        with pytest.raises(ValueError, match=message):
            UniWeTokImageProcessor(**options)
        with pytest.raises(ValueError, match=message):
            processor(noise(32, 32), **options)

    def test_size_of_the_wrong_type(self):
        with pytest.raises(ValueError, match="size: height must be a positive multiple"):
            UniWeTokImageProcessor(size={"height": 64.0, "width": 32})

    @pytest.mark.parametrize(
        "picture, message",
        [
            (np.full((8, 8, 3), np.nan), r"floats must lie in \[0, 1\], got values from nan"),
            (np.full((8, 8, 3), np.inf), r"floats must lie in \[0, 1\]"),
            (np.full((8, 8, 3), -0.5), r"floats must lie in \[0, 1\], got values from -0.5"),
            (np.full((8, 8, 3), 255.0), r"floats must lie in \[0, 1\], got values from 255"),
            (np.full((8, 8, 3), 256), r"integers must lie in 0..255, got values from 256"),
            (torch.full((3, 8, 8), -1), r"integers must lie in 0..255, got values from -1"),
            (np.full((8, 8, 3), True), "bool"),
            (np.zeros((0, 8, 3), dtype=np.uint8), "must have pixels"),
            (Image.new("RGB", (0, 8)), "images: .* has no pixels"),
            (Image.new("F", (8, 8), 300.0), "images: .* float values from 300"),
            ("no-such-file.png", "no-such-file.png: no such file"),
            (b"no picture", "not a picture"),
        ],
    )
    def test_pictures(self, processor, picture, message):
        with pytest.raises(ValueError, match=message):
            processor(picture)

    @pytest.mark.parametrize("images", [[], [[], []]])
    def test_no_pictures(self, processor, images):
        with pytest.raises(ValueError, match="at least one picture"):
            processor(images)

    def test_channels_without_conversion(self, processor):
        assert processor(noise(8, 8), do_convert_rgb=False).pixel_values.shape == (1, 3, 32, 32)
        with pytest.raises(ValueError, match="3 channels are needed"):
            processor(noise(8, 8).convert("RGBA"), do_convert_rgb=False)

    @pytest.mark.parametrize("size", [None, {"longest_edge": 64}])
    def test_crop_below_one_stride(self, size):
        processor = UniWeTokImageProcessor(fit="crop", size=size)
        with pytest.raises(ValueError, match="31x64 pixels is smaller than one stride of 32"):
            processor(noise(31, 64))

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"output_type": "latent"}, "output_type: must be one of pil, np, pt"),
            ({"pixel_values": torch.zeros(3, 32, 32)}, "pixel_values: must be a tensor"),
            ({"pixel_values": torch.zeros(2, 1, 32, 32)}, "pixel_values: must be a tensor"),
            ({"pixel_values": [np.zeros((3, 32, 32))] * 2}, "pixel_values: must be a tensor"),
            ({"pixel_values": torch.full((2, 3, 32, 32), torch.nan)}, "NaN"),
            ({"original_sizes": [(32, 32)]}, "original_sizes: must be one"),
            ({"content_sizes": [(32, 32, 3), (32, 32, 3)]}, "content_sizes: must be one"),
            ({"content_sizes": [(32, 32), (32, 33)]}, r"content_sizes: \(32, 33\) is larger"),
            ({"original_sizes": [(32, 32), (0, 32)]}, "original_sizes: must be one"),
        ],
    )
    def test_postprocess(self, processor, arguments, message):
        with pytest.raises(ValueError, match=message):
            processor.postprocess(**{"pixel_values": torch.zeros(2, 3, 32, 32), **arguments})


class TestSaving:
    @pytest.mark.parametrize(
        "options",
        [{}, {"stride": 16, "fit": "crop", "size": {"height": 64, "width": 32}}, {"size": {"longest_edge": 96}}],
    )
    def test_round_trip(self, tmp_path, options):
        processor = UniWeTokImageProcessor(**options)
        processor.save_pretrained(tmp_path)
        loaded = UniWeTokImageProcessor.from_pretrained(tmp_path)
        assert loaded.to_dict() == processor.to_dict()
        image = noise(100, 70)
        assert torch.equal(loaded(image).pixel_values, processor(image).pixel_values)

    def test_saved_names(self, tmp_path):
        UniWeTokImageProcessor().save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
        assert saved == {
            "image_processor_type": "UniWeTokImageProcessor",
            "stride": 32,
            "fit": "pad",
            "resample": 3,
            "do_convert_rgb": True,
            "do_rescale": True,
        }

    def test_from_pretrained_with_options(self, tmp_path):
        UniWeTokImageProcessor().save_pretrained(tmp_path)
        loaded = UniWeTokImageProcessor.from_pretrained(tmp_path, fit="resize", stride=16)
        assert (loaded.fit, loaded.stride) == ("resize", 16)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux counts it")
@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (3, 30_000)])
@pytest.mark.parametrize("size", [{"height": 256, "width": 256}, {"height": 128, "width": 512}])
def test_narrow_pictures_take_little_memory(shape, size):
    """What is cut off is not scaled first: it would take gigabytes."""
    ramp = np.linspace(0, 1, max(shape)) < 0.5  # one half white, the other black
    values = np.broadcast_to(ramp.reshape([1, -1] if shape[0] < shape[1] else [-1, 1])[..., None], (*shape, 3))
    picture = Image.fromarray(np.uint8(255) * values.astype(np.uint8))
    processor = UniWeTokImageProcessor(fit="crop", size=size)

    def kilobytes(name: str) -> int:
        return next(
            int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if name in line
        )

    processor(Image.new("RGB", (64, 64)))
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
    before = kilobytes("VmHWM")
    found = processor(picture)["pixel_values"]
    assert kilobytes("VmHWM") - before < 40_000
    assert found.shape[2:] == (size["height"], size["width"])
    corners = found[0, 0, [0, -1], [0, -1]].tolist()
    assert corners == [1, -1] or size["height"] != size["width"]  # the middle stays in the middle
    assert abs(found.mean()) < 0.1


def test_cutting_first_and_scaling_first_agree(monkeypatch):
    """Both ways to the same crop, on a picture that both can take."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 300, 3), dtype=np.uint8))
    processor = UniWeTokImageProcessor(fit="crop", size={"height": 64, "width": 64})
    one = processor(picture, do_rescale=False)["pixel_values"]
    monkeypatch.setattr("uniwetok_hf.modeling.image_processing_uniwetok.MOST_ENLARGED", 0)
    assert (processor(picture, do_rescale=False)["pixel_values"] - one).abs().max() <= 1
