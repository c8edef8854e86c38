"""`uniwetok benchmark imagenet|reconstruction|zero-shot`: the paper's scores on pictures of ImageNet and COCO,
measured by `uniwetok sample-classes` and `uniwetok evaluate` with the settings that the paper names."""

import argparse
from pathlib import Path
from shlex import quote

from .common import add_command, add_seed_option, positive_int, user_errors
from .evaluate import add_data_options, measure_latents, measure_reconstruction, run_evaluate, show_report
from .sample_classes import add_sampling_options, sample


# Texts of a class for zero-shot accuracy, whose directions are averaged: the seven of Radford et al. (2021).
TEMPLATES = (
    "itap of a {label}.",
    "a bad photo of the {label}.",
    "a origami {label}.",
    "a photo of the large {label}.",
    "a {label} in a video game.",
    "art of the {label}.",
    "a photo of the small {label}.",
)
REFERENCES = "VIRTUAL_imagenet256_labeled.npz"


def add_commands(benchmarks) -> None:
    """Adds the three to the sub-commands of `benchmark`."""
    _add_imagenet(benchmarks)
    _add_reconstruction(benchmarks)
    _add_zero_shot(benchmarks)


def _add_imagenet(benchmarks) -> None:
    parser = add_command(
        benchmarks,
        "imagenet",
        run_imagenet,
        "Generate the pictures of imagenet: 50,000 of 1,000 classes.\nFID and the like of class-to-image models.",
        [
            "runs/imagenet_b/pipeline results/imagenet_b --device cuda",
            "runs/imagenet_b/pipeline results/imagenet_b --collect results/imagenet_b/evaluator.txt",
        ],
    )
    add_sampling_options(parser)
    parser.add_argument(
        "--references",
        metavar="NPZ",
        default=REFERENCES,
        help=f"real pictures and statistics, for the judge's command (default: {REFERENCES})",
    )
    parser.add_argument(
        "--collect", metavar="PATH", help="what the judge printed: saves its scores, generates nothing"
    )
    parser.add_argument("--judge", metavar="NAME", help="with --collect: the judge and its version, for the results")


def run_imagenet(args: argparse.Namespace) -> None:
    """`uniwetok benchmark imagenet`."""
    if args.collect is not None:
        from uniwetok_hf.evaluation.benchmarks.imagenet import collect_imagenet

        with user_errors():
            report = collect_imagenet(args.out, args.collect, args.pipeline, args.judge)
        show_report(report, Path(args.out) / "scores")
        return
    from uniwetok_hf.evaluation.processes import Processes

    with user_errors():
        processes = Processes.join()
        sample(args)
        processes.wait()
    if not processes.is_main:
        return
    out = Path(args.out).resolve()
    samples, references = quote(str(out / "samples.npz")), quote(str(Path(args.references).resolve()))
    printed = quote(str(out / "evaluator.txt"))
    print(f"{args.out}: all pictures are there. In ADM's repository, guided-diffusion:")
    print(f"python evaluations/evaluator.py {references} {samples} > {printed}")
    print(f"uniwetok benchmark imagenet {quote(args.pipeline)} {quote(args.out)} --collect {printed}")
    print("or, without another repository:")
    print(
        f"uniwetok evaluate classes {samples} {references} --inception inception.safetensors "
        f"--output {quote(str(out / 'scores_of_uniwetok'))}"
    )


def _add_reconstruction(benchmarks) -> None:
    parser = add_command(
        benchmarks,
        "reconstruction",
        run_protocol,
        "Reconstruct validation pictures at 256 x 256 and at their own size: rFID, PSNR, SSIM, LPIPS.\n"
        "`evaluate reconstruction` with the paper's settings; for ImageNet, COCO, faces and text.",
        [
            "runs/stage3/model results/imagenet --data imagenet --inception inception.safetensors",
            "runs/stage3/model results/text --data data/faces_and_text/pictures --split test --text-column words",
        ],
    )
    _add_places(parser)
    parser.add_argument("--by", metavar="COLUMN", help="a row of the table for each value of a column")
    parser.add_argument("--inception", metavar="FILE", help="FID's network, a file of convert_inception: adds rFID")
    parser.add_argument(
        "--lpips", dest="perceptual", metavar="FILE", help="a file of convert_lpips: adds the perceptual distance"
    )
    parser.add_argument(
        "--text-column", metavar="COLUMN", help="text that stands in a picture: adds the share read back (extra `ocr`)"
    )
    add_seed_option(parser, "seed of the decoder's noise and of the choice")
    parser.set_defaults(measure=measure_reconstruction, sizes=[256, None], features=None, photographs=False)


def _add_zero_shot(benchmarks) -> None:
    parser = add_command(
        benchmarks,
        "zero-shot",
        run_protocol,
        "Classify validation pictures by latents and codes, without training: top 1, 5 and 10.\n"
        "`evaluate latents` at 256 x 256 with the teacher's texts of seven templates.",
        [
            "runs/stage3/model results/zero-shot --data imagenet --teacher google/siglip2-so400m-patch16-384",
            "runs/stage3/model results/zero-shot --data photos --split test --label kind --teacher runs/siglip/model",
        ],
    )
    _add_places(parser)
    parser.add_argument("--label", default="label", metavar="COLUMN", help="class of a picture (default: label)")
    parser.add_argument("--size", type=positive_int, default=256, metavar="N", help="side in pixels (default: 256)")
    parser.add_argument(
        "--teacher", required=True, metavar="M", help="folder or Hub name of the distillation's teacher"
    )
    parser.add_argument(
        "--pools", metavar="DIR", help="pools of the distillation (default: losses/distillation beside the model)"
    )
    add_seed_option(parser, "seed of the choice")
    parser.set_defaults(measure=measure_latents, no_probe=True, train_split=None, template=list(TEMPLATES))


def run_protocol(args: argparse.Namespace) -> None:
    """`uniwetok benchmark reconstruction` and `zero-shot`."""
    args.is_dry_run = args.count is not None
    run_evaluate(args)


def _add_places(parser: argparse.ArgumentParser) -> None:
    """Model, output and data, as `run_evaluate` reads them."""
    parser.add_argument(
        "model", metavar="MODEL", help="checkpoint or pipeline folder, or Hub id; uniwetok-emoji ships"
    )
    parser.add_argument("output", metavar="OUT", help="folder of the result files")
    parser.add_argument("--data", required=True, metavar="DATA", help="as in `uniwetok evaluate reconstruction`")
    add_data_options(parser, "validation")
    parser.add_argument("--limit", dest="count", type=positive_int, metavar="N", help="only so many: a dry run")
    parser.add_argument("--device", default="cpu", help="cpu (default, in float32), cuda, cuda:1, ... or mps")
