"""`uniwetok reconstruct`, `encode` and `decode`: pictures to codes and back, with the image tokenizer alone."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from .common import (
    CommandError,
    add_command,
    add_model_options,
    add_seed_option,
    check_pictures,
    generator,
    output_folder,
    output_paths,
    positive_int,
    user_errors,
    warn,
)
from .loading import load_vision_model


GAP = 8  # pixels between the two halves of a side-by-side picture
ANY_CHECKPOINT = "pipeline folder, image tokenizer folder"
# Memory of a decoding, as measured: values that live at once per pixel, for each channel of the first two levels.
VALUES_PER_PIXEL = (2.25, 4.25)
MUCH_MEMORY = 2e9


def add_commands(commands) -> None:
    """Adds the three sub-commands."""
    parser = add_command(
        commands,
        "reconstruct",
        run_reconstruct,
        "Encode pictures to binary codes and decode them again, at any size.\n"
        "Writes NAME-reconstruction.png and NAME-side-by-side.png, and prints PSNR (and SSIM with scikit-image).",
        ["photo.jpg", "photos/*.jpg --longest-edge 512 --output reconstructions"],
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="any picture that Pillow reads")
    add_model_options(parser, ANY_CHECKPOINT)
    parser.add_argument("--output", metavar="DIR|FILE", help="folder, or file of a single reconstruction (default: .)")
    _add_size_options(parser)
    add_seed_option(parser, "seed of the decoder's noise")

    parser = add_command(
        commands,
        "encode",
        run_encode,
        "Save the binary codes of pictures, 16 bytes a token with 128 bits.\n"
        "One file holds all of them, with the sizes that `uniwetok decode` gives back.",
        ["photo.jpg", "photos/*.jpg --longest-edge 512 --output photos.safetensors"],
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="any picture that Pillow reads")
    add_model_options(parser, ANY_CHECKPOINT)
    parser.add_argument("--output", metavar="FILE", default="codes.safetensors", help="default: codes.safetensors")
    _add_size_options(parser)

    parser = add_command(
        commands,
        "decode",
        run_decode,
        "Turn saved codes back into pictures of their original sizes, as CODES-decoded.png.\n"
        "Needs the checkpoint that encoded them; codes that don't fit the model are refused.",
        ["codes.safetensors", "photos.safetensors --output photos --seed 1"],
    )
    parser.add_argument("codes", metavar="CODES", help="file that `uniwetok encode` wrote")
    add_model_options(parser, ANY_CHECKPOINT)
    parser.add_argument("--output", metavar="DIR|FILE", help="folder, or file of a single picture (default: .)")
    add_seed_option(parser, "seed of the decoder's noise")


def _add_size_options(parser: argparse.ArgumentParser) -> None:
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", type=positive_int, metavar="N", help="work at exactly N x N pixels")
    sizes.add_argument(
        "--longest-edge", type=positive_int, metavar="N", help="scale larger pictures down to at most N pixels a side"
    )
    parser.add_argument(
        "--fit",
        choices=("pad", "resize", "crop"),
        default="pad",
        help="how a picture gets sides that the model can do: repeat its edge, resize it, or cut out its centre "
        "(default: pad)",
    )


def run_reconstruct(args: argparse.Namespace) -> None:
    """`uniwetok reconstruct`."""
    targets = output_paths(args.output, [f"{Path(path).stem}-reconstruction" for path in args.pictures], args.pictures)
    check_pictures(args.pictures)
    model = load_vision_model(args.model, args.device)
    image_processor = make_image_processor(model.config, args)
    for path, target in zip(args.pictures, targets, strict=True):
        result = reconstruct(model, image_processor, _read(path), args.seed, path)
        print(f"{path}: {describe_reconstruction(result)}")
        print(f"  {_save(result.result, target)}")
        beside = target.with_stem(target.stem.removesuffix("-reconstruction") + "-side-by-side")
        print(f"  {_save(side_by_side(result.original, result.result), beside)}")


def run_encode(args: argparse.Namespace) -> None:
    """`uniwetok encode`."""
    from uniwetok_hf import save_codes

    output = Path(args.output)
    if output.suffix != ".safetensors" or output.is_dir():
        raise CommandError(f"--output {output} must be a file with the ending .safetensors")
    check_pictures(args.pictures)
    model = load_vision_model(args.model, args.device)
    image_processor = make_image_processor(model.config, args)
    codes, original_sizes, content_sizes = [], [], []
    for path in args.pictures:
        picture = _read(path)
        inputs = _prepare(image_processor, picture, path)
        codes.append(_encode(model, inputs, path))
        original_sizes += inputs["original_sizes"]
        content_sizes += inputs["content_sizes"]
        print(f"{path}: {picture.width}x{picture.height} pixels, {_count(codes[-1])}")
    output.parent.mkdir(parents=True, exist_ok=True)
    print(save_codes(output, codes, model.config, original_sizes, content_sizes))


def run_decode(args: argparse.Namespace) -> None:
    """`uniwetok decode`."""
    from uniwetok_hf import UniWeTokImageProcessor, load_codes

    with user_errors():
        saved = load_codes(args.codes)
    stem, count = Path(args.codes).stem, len(saved.codes)
    names = [f"{stem}-decoded"] if count == 1 else [f"{stem}-decoded-{index + 1:03d}" for index in range(count)]
    targets = output_paths(args.output, names)
    model = load_vision_model(args.model, args.device)
    with user_errors(prefix=f"{args.codes}: "):
        saved.check_fits(model.config)
    maker, name = saved.metadata.get("model"), model.config._name_or_path
    if maker and Path(maker).name != Path(name).name:
        warn(f"{args.codes} was made by {maker}, and is decoded by {name}")
    image_processor = UniWeTokImageProcessor(stride=model.config.stride)
    for index, (codes, target) in enumerate(zip(saved.codes, targets, strict=True)):
        sizes = [None if values is None else [values[index]] for values in (saved.original_sizes, saved.content_sizes)]
        sample = _decode(model, codes, args.seed, args.codes)
        with user_errors(prefix=f"{args.codes}: "):
            (picture,) = image_processor.postprocess(sample, *sizes)
        print(_save(picture, target))


def make_image_processor(config, args: argparse.Namespace):
    """The image processor for `--size`, `--longest-edge` and `--fit`.

    Raises:
        CommandError: for a size that the model can't do; it names the nearest that it can.
    """
    from uniwetok_hf import UniWeTokImageProcessor

    size = None
    for option, pixels in (("--size", args.size), ("--longest-edge", args.longest_edge)):
        if pixels is None:
            continue
        if pixels % config.stride:
            below = pixels // config.stride * config.stride
            near = f"{below} or {below + config.stride}" if below else f"{config.stride}"
            raise CommandError(
                f"{option} {pixels}: sides must be multiples of the model's {config.stride} pixels, such as {near}"
            )
        size = {"height": pixels, "width": pixels} if option == "--size" else {"longest_edge": pixels}
    return UniWeTokImageProcessor(stride=config.stride, fit=args.fit, size=size)


def reconstruct(model, image_processor, picture: Image.Image, seed: int, name: str):
    """Encodes and decodes one picture into a `Reconstruction`; `name` is what errors call it."""
    from uniwetok_hf.evaluation.reconstruction import reconstruct_prepared

    inputs = _prepare(image_processor, picture, name)
    warn_when_large(model, inputs["pixel_values"].shape, name)
    with _memory_errors(name), user_errors(prefix=f"{name}: "):
        (result,) = reconstruct_prepared(model, image_processor, inputs, [picture], seed)
    return result


def describe_reconstruction(result) -> str:
    """One line of figures of a `Reconstruction`."""
    width, height = result.original.size
    line = f"{width}x{height} pixels, {result.num_tokens} tokens, {result.num_bytes} bytes, {quality(result)}"
    if result.seen.size != result.original.size:
        line += f" (at the model's {result.seen.width}x{result.seen.height}: {_quality(result.seen, result.decoded)})"
    return line


def quality(result) -> str:
    """PSNR, and SSIM where scikit-image is installed."""
    return _quality(result.original, result.result)


def _quality(original: Image.Image, result: Image.Image) -> str:
    from uniwetok_hf.evaluation.metrics import psnr, ssim

    text = f"PSNR {psnr(result, original):.2f} dB"
    with contextlib.suppress(ImportError):
        if min(original.size) >= 7:  # the window of SSIM
            text += f", SSIM {ssim(result, original):.3f}"
    return text


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures of one size with a thin white gap."""
    both = Image.new("RGB", (left.width + GAP + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + GAP, 0))
    return both


def warn_when_large(model, shape: tuple[int, ...], name: str) -> None:
    """A warning before a picture [..., height, width] that needs much memory, and time."""
    height, width = shape[-2:]
    values = sum(a * b for a, b in zip(VALUES_PER_PIXEL, model.config.level_channels, strict=False))
    needed = height * width * values * model.dtype.itemsize
    if needed > MUCH_MEMORY:
        warn(
            f"{name}: {width}x{height} pixels take about {needed / 1e9:.0f} GB of memory and a while; "
            "--longest-edge 1024 makes it quick"
        )


def _read(path: str) -> Image.Image:
    from uniwetok_hf.data.images import read_image

    with user_errors():
        return read_image(path)


def _save(picture: Image.Image, path: Path) -> Path:
    from uniwetok_hf.data.images import save_image

    output_folder(path.parent)
    return save_image(picture, path)


def _prepare(image_processor, picture: Image.Image, name: str):
    with user_errors(prefix=f"{name}: "):
        return image_processor(picture)


@contextlib.contextmanager
def _memory_errors(name: str) -> Iterator[None]:
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in str(error):
            raise
        raise CommandError(f"{name}: not enough memory for a picture of this size; try --longest-edge 1024") from error


def _encode(model, inputs, name: str):
    """Codes [bits, h, w] of one prepared picture."""
    import torch

    warn_when_large(model, inputs["pixel_values"].shape, name)
    with torch.no_grad(), _memory_errors(name):
        return model.encode(inputs["pixel_values"].to(model.device, model.dtype)).codes[0]


def _decode(model, codes, seed: int, name: str):
    """The picture of codes [bits, h, w], float32 [1, 3, H, W]. Each has its own generator, so that a picture does not
    depend on those decoded before it."""
    import torch

    with torch.no_grad(), _memory_errors(name), user_errors(prefix=f"{name}: "):
        batch = codes[None].to(model.device, model.dtype)
        return model.decode(batch, generator=generator(seed)).sample.float()


def _count(codes) -> str:
    num_tokens = codes.shape[1] * codes.shape[2]
    return f"{num_tokens} tokens, {num_tokens * codes.shape[0] // 8} bytes"
