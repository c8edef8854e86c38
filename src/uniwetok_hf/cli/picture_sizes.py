"""What `reconstruct`, `encode` and `decode` share: options of size, and errors about one picture."""

import argparse
import contextlib
from collections.abc import Iterator

from .common import CommandError, positive_int, user_errors, warn


# Memory of a decoding, as measured: values per pixel, for each channel of the first two levels.
VALUES_PER_PIXEL = (2.25, 4.25)
MUCH_MEMORY = 2e9


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """`--size`, `--longest-edge` and `--fit`."""
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", type=positive_int, metavar="N", help="encode at exactly N x N pixels")
    sizes.add_argument(
        "--longest-edge",
        type=positive_int,
        metavar="N",
        help="scale larger pictures down to at most N pixels per side",
    )
    parser.add_argument(
        "--fit",
        choices=("pad", "resize", "crop"),
        default="pad",
        help="how sides become multiples of the model's stride: repeat the edge, resize, or crop the centre "
        "(default: pad)",
    )


def make_image_processor(config, args: argparse.Namespace):
    """The image processor for `--size`, `--longest-edge` and `--fit`.

    Raises:
        CommandError: for a size that is not a multiple of the stride; the message names the nearest that are.
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


def warn_when_large(model, shape: tuple[int, ...], name: str) -> None:
    """Warns before a picture [..., height, width] that needs much memory and time."""
    height, width = shape[-2:]
    values = sum(a * b for a, b in zip(VALUES_PER_PIXEL, model.config.level_channels, strict=False))
    needed = height * width * values * model.dtype.itemsize
    if needed > MUCH_MEMORY:
        warn(
            f"{name}: {width}x{height} pixels need about {needed / 1e9:.0f} GB of memory and some time; "
            "--longest-edge 1024 is quick"
        )


@contextlib.contextmanager
def picture_errors(name: str) -> Iterator[None]:
    """Turns errors about the picture `name`, and running out of memory, into a [`CommandError`]."""
    import torch

    try:
        with user_errors(prefix=f"{name}: "):
            yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in str(error):
            raise
        raise CommandError(f"{name}: not enough memory for a picture of this size; try --longest-edge 1024") from error
