"""The parser of the `uniwetok` command, and the run of one command.

Exit codes: 0, 1 for bad input, a full disk and the like (one line on stderr) and for bugs (a traceback), 2 for a
command line that can't be parsed, 75 when a signal stopped work that the same command goes on with, 130 when
interrupted. When the reader of the output closes it, as `| head` does, the command ends with 1 and without a word.

The modules of the commands import torch, transformers, Pillow and the rest of the package when a command runs, not
when they are imported themselves: help and usage errors answer at once (see `uniwetok_entry`).
"""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence

from uniwetok_hf.files import write_failure
from uniwetok_hf.signals import EXIT_CODE, Stopped

from . import (
    app,
    benchmark,
    convert,
    decode,
    demo,
    describe,
    edit,
    encode,
    encode_dataset,
    evaluate,
    export,
    generate,
    plan,
    push,
    reconstruct,
    sample_classes,
    serve,
    train,
)
from .common import CommandError, load_package, one_line


# In the order of the help.
COMMANDS = (
    demo,
    app,
    serve,
    reconstruct,
    encode,
    decode,
    generate,
    edit,
    describe,
    convert,
    encode_dataset,
    train,
    plan,
    export,
    sample_classes,
    evaluate,
    benchmark,
    push,
)
DESCRIPTION = """\
Images as 128-bit binary codes, and one language model that generates, edits and describes them.
Without --model, commands use uniwetok-emoji, a small model of emoji that ships with the package.
"""
EPILOG = """\
start here:
  uniwetok demo                                  all of it, on pictures that ship with the package
  uniwetok reconstruct photo.jpg                 a picture to codes and back
  uniwetok generate "a fluent flat emoji of blue heart"  text to image
  uniwetok edit hand.png "make the skin tone dark"
  uniwetok COMMAND --help                        options and examples of a command

With UNIWETOK_TRACEBACK=1 in the environment, errors also show their traceback.
"""
# Commands of version 0.1 that are now scripts of the repository.
MOVED = {
    "data": "the scripts emoji_data.py and faces_and_text.py of examples/emoji",
    "data emoji": "`python examples/emoji/emoji_data.py`",
    "data faces-and-text": "`python examples/emoji/faces_and_text.py`",
    "train siglip": "`python examples/emoji/train_siglip.py`",
    "evaluate emoji": "`python examples/emoji/evaluate_emoji.py`",
}


class _Version(argparse.Action):
    """Prints the versions that a bug report needs."""

    def __call__(self, parser, namespace, values, option_string=None):
        from importlib import metadata

        from uniwetok_hf.version import __version__

        others = [f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "diffusers")]
        print(f"uniwetok-hf {__version__} (Python {sys.version.split()[0]}, {', '.join(others)})")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="uniwetok",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print versions and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add_commands(commands)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed command line; exits with 2 where it can't be parsed."""
    parser = build_parser()
    for words in (" ".join(argv[:2]), *argv[:1]):
        if words in MOVED:
            parser.exit(2, f"uniwetok: error: `uniwetok {words}` is now {MOVED[words]} in the repository\n")
    args, unknown = parser.parse_known_args(argv)
    if unknown:  # with the usage of the command, where argparse would print that of all commands
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def main_of_process() -> int:
    """[`main`] of a process that ends with the command. Of several that work together, each waits for the others and
    leaves their process group: where one exits while others are still connected to it, their threads can abort them,
    and an exit code is lost."""
    code = main()
    torch = sys.modules.get("torch")
    if code in (0, EXIT_CODE) and torch and torch.distributed.is_available() and torch.distributed.is_initialized():
        from accelerate import PartialState

        with contextlib.suppress(RuntimeError):  # another one has failed, and has said why
            PartialState().wait_for_everyone()
            PartialState().destroy_process_group()
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command, by default that of `sys.argv`, and returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # for terminals that lack a letter
    try:
        with _output_flushed():
            return _run(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:
        _drop_output()
        return 1
    except OSError as error:  # of stdout or stderr, since `_run` handles those of a command
        _drop_output(sys.stdout)
        with contextlib.suppress(OSError):
            _fail(f"the output can't be written: {error.strerror}")
        _drop_output()
        return 1


@contextlib.contextmanager
def _output_flushed() -> Iterator[None]:
    """Writes what is buffered at the end of the block, also where `--help` exits: Python would do it when nobody can
    catch the error any more."""
    try:
        yield
    finally:
        sys.stdout.flush()


def _drop_output(*streams) -> None:
    """Nothing more can be written, not even at exit."""
    for stream in streams or (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # of streams without a file
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def _run(argv: Sequence[str]) -> int:
    """One command, with its errors as lines and exit codes."""
    try:
        args = parse(argv)
        load_package()
        args.run(args)
    except CommandError as error:
        if _is_of_output(error.__cause__):
            raise error.__cause__ from None
        if os.environ.get("UNIWETOK_TRACEBACK"):
            traceback.print_exception(error)
        return _fail(str(error))
    except Stopped as error:
        return _fail(str(error), EXIT_CODE, "")
    except KeyboardInterrupt as error:
        print(f"\nuniwetok: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    except Exception as error:
        if _is_of_output(error):
            raise
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            return _fail(f"{error.filename}: {error.strerror}")
        if (reason := write_failure(error)) is not None:  # of no file that we know
            return _fail(reason)
        return _report_unexpected(error)
    return 0


def _is_of_output(error: BaseException | None) -> bool:
    """Whether an error is that of our own stdout or stderr: a closed pipe, or what stdout still can't write."""
    if isinstance(error, OSError) and error.filename is None and not isinstance(error, BrokenPipeError):
        try:
            sys.stdout.flush()
        except OSError:
            return True
    return isinstance(error, BrokenPipeError)


def _fail(message: str, code: int = 1, kind: str = "error: ") -> int:
    print(f"uniwetok: {kind}{one_line(message, limit=3000)}", file=sys.stderr)
    return code


def _report_unexpected(error: Exception) -> int:
    traceback.print_exception(error)
    print(
        f"uniwetok: unexpected {type(error).__name__}: this may be a bug. Please report it with the lines above and "
        "the output of `uniwetok --version`.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
