"""`uniwetok demo`: all that the model does, as pages of pictures. Needs no network and no extra."""

import argparse
import time
from pathlib import Path

from .common import add_command, add_model_options, add_seed_option, output_folder
from .loading import load_pipeline


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "demo",
        run_demo,
        "Reconstruct, generate, edit and describe pictures, and save pages of the results.\n"
        "Uses pictures that ship with the package, and three photographs where scikit-image is installed.",
        ["", "--output somewhere --seed 1"],
    )
    parser.add_argument("--output", metavar="DIR", default="demo_output", help="default: demo_output")
    add_model_options(parser)
    add_seed_option(parser, "seed of everything that is generated")


def run_demo(args: argparse.Namespace) -> None:
    """`uniwetok demo`."""
    from uniwetok_hf.data.images import save_image

    from . import sheets
    from .demo_sections import SECTIONS

    folder = output_folder(args.output)
    begin = time.monotonic()
    pipeline = load_pipeline(args.model, args.device)
    _report("loading the model", "", begin)
    sections = []
    for name, make in SECTIONS.items():
        start = time.monotonic()
        section = make(pipeline, args.seed)
        if section is None:
            continue
        sections.append(section)
        _report(name.replace("_", " "), save_image(sheets.page([section]), folder / f"{name}.png"), start)
    start = time.monotonic()
    contact_sheet = sheets.page([sheets.columns(sections)])
    _report("contact sheet", save_image(contact_sheet, folder / "contact_sheet.png"), start)
    _report("all together", folder, begin)


def _report(what: str, where: Path | str, start: float) -> None:
    print(f"{what:<18} {time.monotonic() - start:6.1f} s  {where}".rstrip(), flush=True)
