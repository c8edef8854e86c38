"""What `reconstruct`, `encode` and `decode` share: options of size, and pictures that do not fit into memory."""

import argparse
import contextlib
from collections.abc import Iterator

from .common import CommandError, positive_int, user_errors, warn


# Memory of a decoding, as measured: values that live at once per pixel, for each channel of the first two levels.
VALUES_PER_PIXEL = (2.25, 4.25)
MUCH_MEMORY = 2e9


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """`--size`, `--longest-edge` and `--fit`."""
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


@contextlib.contextmanager
def picture_errors(name: str) -> Iterator[None]:
    """Turns what a model says to a picture, and memory that runs out, into a [`CommandError`] that begins with
    `name`."""
    import torch

    try:
        with user_errors(prefix=f"{name}: "):
            yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in str(error):
            raise
        raise CommandError(f"{name}: not enough memory for a picture of this size; try --longest-edge 1024") from error
