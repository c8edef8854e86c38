"""What the commands share: errors, options, output files, pictures and devices."""

import argparse
import contextlib
import itertools
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from uniwetok_hf.files import one_line as message_of


# An --output with one of these suffixes is a file, any other a folder.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
LARGEST_SEED = 2**63 - 1
ANY_CHECKPOINT = "pipeline folder, image tokenizer folder"  # what --model takes for an image tokenizer


class CommandError(Exception):
    """An error that the user can fix: `main` prints it as one line and exits with 1."""


def load_package() -> None:
    """Executes `uniwetok_hf/__init__.py`, unless that is done: `uniwetok_entry` leaves it until a command runs."""
    package = sys.modules["uniwetok_hf"]
    if "__version__" not in vars(package):
        package.__spec__.loader.exec_module(package)


def one_line(error: object, limit: int = 400) -> str:
    """The message of an exception without line breaks, cut to `limit` characters."""
    text = message_of(error) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


@contextlib.contextmanager
def user_errors(*kinds: type[Exception], prefix: str = "") -> Iterator[None]:
    """Turns exceptions of `kinds` (by default `ValueError`) into a [`CommandError`]. `ValueError` is what the package
    raises for arguments and data of the user's; `UNIWETOK_TRACEBACK=1` shows where it comes from."""
    try:
        yield
    except kinds or ValueError as error:
        raise CommandError(prefix + one_line(error, limit=2000)) from error


def warn(text: str) -> None:
    """Prints a warning on stderr; the command continues."""
    print(f"uniwetok: warning: {text}", file=sys.stderr)


def positive_int(text: str) -> int:
    """Argparse type: a whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)


def seed_type(text: str) -> int:
    """Argparse type: a seed of `torch.Generator`."""
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"must be a whole number of 0 or more, got {text!r}")
    return int(text)


def finite_float(text: str) -> float:
    """Argparse type: a number, but neither nan nor infinity."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")
    return value


def add_command(commands, name: str, run, description: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    """Adds a sub-command. `description` has two lines; the first is also its line in the list of commands."""
    parser = commands.add_parser(
        name,
        help=description.splitlines()[0],
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.epilog = "\n".join(["examples:", *(f"  {parser.prog} {example}".rstrip() for example in examples)])
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_group(commands, name: str, description: str, examples: Sequence[str], metavar: str = "WHAT"):
    """Adds a command with sub-commands, which [`add_command`] adds to what is returned."""
    parser = add_command(commands, name, None, description, examples)
    return parser.add_subparsers(dest="kind", required=True, metavar=metavar)


def add_model_options(parser: argparse.ArgumentParser, what: str = "pipeline folder") -> None:
    """`--model` and `--device`."""
    parser.add_argument("--model", metavar="M", help=f"{what} or Hub id (default: uniwetok-emoji, the embedded model)")
    parser.add_argument("--device", default="cpu", help="cpu (default, in float32), cuda, cuda:1, ... or mps")


def add_seed_option(parser: argparse.ArgumentParser, what: str) -> None:
    """`--seed`, default 0."""
    parser.add_argument("--seed", type=seed_type, default=0, help=f"{what} (default: 0)")


def add_max_skipped_share(parser: argparse.ArgumentParser) -> None:
    """`--max-skipped-share`."""
    parser.add_argument(
        "--max-skipped-share",
        type=finite_float,
        metavar="S",
        default=0.01,
        help="end with an error when a larger share of the rows is damaged, and more than ten (default: 0.01)",
    )


def add_edit_options(parser: argparse.ArgumentParser) -> None:
    """`--image-guidance-scale` and `--describe-first`."""
    parser.add_argument(
        "--image-guidance-scale",
        type=finite_float,
        metavar="V",
        help="edits: weight of the picture, lower = farther from it (default: the guidance scale in the model's "
        "proportion)",
    )
    parser.add_argument(
        "--describe-first",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="edits: describe the result in words before it is generated, or don't (default: the model's)",
    )


def slug(text: str, max_bytes: int = 100) -> str:
    """`text` as part of a file name: letters and digits of any script, joined by single hyphens."""
    words = re.sub(r"[\W_]+", "-", text.lower()).strip("-")
    return words.encode()[:max_bytes].decode(errors="ignore").strip("-") or "picture"


def unique(names: Sequence[str]) -> list[str]:
    """`names` with -2, -3, ... behind those that came before."""
    taken: set[str] = set()
    result = []
    for name in names:
        candidate, count = name, 1
        while candidate in taken:
            count += 1
            candidate = f"{name}-{count}"
        taken.add(candidate)
        result.append(candidate)
    return result


def output_paths(output: str | None, names: Sequence[str], inputs: Sequence[str] = ()) -> list[Path]:
    """Paths of the output pictures: `output` itself when it is a picture file, else `names` (without suffix) as
    PNG in the folder `output`, by default the current one.

    Raises:
        CommandError: when `output` is one file for several pictures, or an input would be overwritten.
    """
    path = Path(output or ".")
    if path.suffix.lower() in PICTURE_SUFFIXES and not path.is_dir():
        if len(names) > 1:
            raise CommandError(f"--output {path} is one file, but {len(names)} pictures are written: give a folder")
        output_folder(path.parent)
        paths = [path]
    else:
        paths = [output_folder(path) / f"{name}.png" for name in unique(names)]
    check_not_read(paths, inputs)
    return paths


def check_not_read(paths: Sequence[Path], inputs: Sequence[str]) -> None:
    """
    Raises:
        CommandError: when one of the outputs `paths` is one of `inputs`.
    """
    read = {Path(source).resolve() for source in inputs}
    for target in paths:
        if target.resolve() in read:
            raise CommandError(f"--output {target} would overwrite the picture that is read")


def output_folder(output: str | Path) -> Path:
    """`output` as a folder, which may not exist yet.

    Raises:
        CommandError: when it is a file.
    """
    path = Path(output)
    if path.exists() and not path.is_dir():
        raise CommandError(f"--output {path} is a file, not a folder")
    return path


def read_keys(path: Path | None) -> tuple[str, ...]:
    """The keys in the file of `--api-key-file`, one per line; empty lines and those that begin with # are none.

    Raises:
        CommandError: when it can't be read, or holds none.
    """
    if path is None:
        return ()
    with user_errors(OSError, UnicodeDecodeError, prefix=f"--api-key-file {path}: "):
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # editors of Windows begin files with a mark
    keys = tuple(line.strip() for line in lines if line.strip() and not line.strip().startswith("#"))
    if not keys:
        raise CommandError(f"--api-key-file {path} holds no key")
    return keys


def read_picture(path: str):
    """The picture at `path` as 8-bit RGB.

    Raises:
        CommandError: when it can't be read.
    """
    from uniwetok_hf.data.images import read_image

    with user_errors():
        return read_image(path)


def read_pictures(paths: Sequence[str]) -> Iterator:
    """The pictures at `paths`, one at a time. All of them are checked now, before a model is loaded. Only the first
    stays in memory; the others are read again when their turn comes.

    Raises:
        CommandError: naming the first that can't be read.
    """
    first, *others = paths
    picture = read_picture(first)
    for path in others:
        read_picture(path)
    return itertools.chain([picture], map(read_picture, others))


@contextlib.contextmanager
def hub_bars() -> Iterator[None]:
    """Shows the progress bars of the Hub on terminals only."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


def make_generator(seed: int):
    """A random generator on the CPU, whose numbers are the same on every device."""
    import torch

    return torch.Generator().manual_seed(min(seed, LARGEST_SEED))


def resolve_device(name: str):
    """The torch device called `name`.

    Raises:
        CommandError: when it is not available.
    """
    import torch

    with user_errors(RuntimeError, prefix=f"--device {name}: "):
        device = torch.device(name)
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= counts.get(device.type, 0):
        found = ", ".join(kind for kind, count in counts.items() if count)
        raise CommandError(f"--device {name} is not available; this machine and this build of torch have {found}")
    return device
