"""Entry point of the `uniwetok` command.

Exit codes: 0, 1 for bad input (one line on stderr) and for errors of our own (a traceback), 2 for a command line that
can't be parsed, 130 when interrupted.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata

from . import (
    app,
    convert,
    decode,
    demo,
    describe,
    edit,
    encode,
    encode_dataset,
    evaluate,
    generate,
    push,
    reconstruct,
    train,
)
from .common import CommandError, one_line


# In the order of the list of commands.
MODULES = (
    demo,
    app,
    reconstruct,
    encode,
    decode,
    generate,
    edit,
    describe,
    convert,
    encode_dataset,
    train,
    evaluate,
    push,
)
DESCRIPTION = """\
Pictures as 128-bit binary codes, and one language model that draws, edits and describes them.
Without --model, commands use uniwetok-emoji, a small model of emoji that ships with the package.
"""
EPILOG = """\
start here:
  uniwetok demo                                  everything at once, on pictures that ship with the package
  uniwetok reconstruct photo.jpg                 a picture to codes and back
  uniwetok generate "a fluent flat emoji of blue heart"  text to picture
  uniwetok edit hand.png "make the skin tone dark"
  uniwetok COMMAND --help                        what a command does, with examples

With UNIWETOK_TRACEBACK=1 in the environment, errors also show where they come from.
"""


class _Version(argparse.Action):
    """Prints the version and those of what we build on: what a bug report needs."""

    def __call__(self, parser, namespace, values, option_string=None):
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
    for module in MODULES:
        module.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code. A command line that can't be parsed exits with 2 by itself."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter is no reason to stop
    args, strange = build_parser().parse_known_args(argv)
    if strange:  # with the usage of the command, where argparse would print that of all commands
        args.parser.error(f"unrecognized arguments: {' '.join(strange)}")
    try:
        args.run(args)
        sys.stdout.flush()
    except CommandError as error:
        if os.environ.get("UNIWETOK_TRACEBACK"):
            traceback.print_exception(error)
        return _fail(str(error))
    except BrokenPipeError:
        # Whoever read our output has seen enough, as with `| head`. Nothing more can be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is not None and error.strerror:
            return _fail(f"{error.filename}: {error.strerror}")
        return _report_unexpected(error)
    except KeyboardInterrupt as error:
        print(f"\nuniwetok: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    except Exception as error:
        return _report_unexpected(error)
    return 0


def _fail(message: str) -> int:
    print(f"uniwetok: error: {one_line(message, limit=3000)}", file=sys.stderr)
    return 1


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
