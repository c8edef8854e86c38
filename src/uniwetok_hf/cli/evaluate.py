"""`uniwetok evaluate reconstruction|latents|generation|editing|captioning|classes`: scores that can be compared.

Of each protocol first the options, then what runs it: it opens the data, loads the models, and hands both to the
protocol's function in `uniwetok_hf.evaluation`, which returns the report.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from .common import (
    ANY_CHECKPOINT,
    CommandError,
    add_command,
    add_edit_options,
    add_group,
    add_max_skipped_share,
    add_model_options,
    add_seed_option,
    finite_float,
    output_folder,
    positive_int,
    resolve_device,
    user_errors,
    warn,
)
from .encode_dataset import device_of_process
from .loading import (
    EMBEDDED,
    Checkpoint,
    find_checkpoint,
    load_language_model,
    load_pipeline,
    load_vision_model,
    quiet_transformers,
)
from .sampling import as_edit_pipeline


DESCRIPTION = """\
Measure reconstruction, latents, generation, editing or captioning on held-out data, or samples of classes.
Prints a table; writes it, results.json and model-index.yaml. Under `accelerate launch` all processes share the work.
"""
EXAMPLES = [
    "reconstruction data/photos --sizes 128 --by style",
    "generation captions.parquet --split train --judge judges/clip --count 500 --output results/generation",
]
NATIVE = "native"


def add_commands(commands) -> None:
    """Adds `evaluate` with a sub-command for each protocol."""
    protocols = add_group(commands, "evaluate", DESCRIPTION, EXAMPLES)
    for add in (_add_reconstruction, _add_latents, _add_generation, _add_editing, _add_captioning, _add_classes):
        add(protocols)


def run_evaluate(args: argparse.Namespace) -> None:
    """`uniwetok evaluate`."""
    needed = {"datasets": "datasets", "skimage": "scikit-image"}
    if lacking := [name for module, name in needed.items() if find_spec(module) is None]:
        raise CommandError(f'evaluate needs {" and ".join(lacking)}: pip install "uniwetok-hf[eval]"')
    from uniwetok_hf.data.places import is_place
    from uniwetok_hf.evaluation.processes import Processes
    from uniwetok_hf.evaluation.rows import PictureRows
    from uniwetok_hf.provenance import short_name

    output = output_folder(args.output or Path("results") / args.kind)
    args.device = str(resolve_device(device_of_process(args.device)))
    opened: list[PictureRows] = []
    with user_errors(ValueError, ImportError):
        processes = Processes.join()
        report = args.measure(args, opened, processes)
        if getattr(args, "is_dry_run", False):
            report.rows = [replace(row, for_card=False) for row in report.rows]
        report.skipped = [reason for rows in opened for reason in rows.all_skipped(processes)]
    report.model = short_name(args.model or EMBEDDED)
    report.data, report.split = "photographs", "scikit-image"
    if args.data:
        data = Path(args.data).name if is_place(args.data) else short_name(args.data)
        report.data, report.split = " ".join(filter(None, [data, args.name])), args.split
        report.protocol["rows"] = args.chosen
    if processes.is_main:
        show_report(report, output)


def show_report(report, output: Path) -> None:
    """Saves and prints a report, and the paths of its files."""
    written = report.save(output)
    if report.skipped:
        warn(f"{len(report.skipped)} rows or pictures can't be used and are left out; the first: {report.skipped[0]}")
    print(report.to_markdown())
    for path in written:
        print(path)


def _add_reconstruction(protocols) -> None:
    parser = _add_protocol(
        protocols,
        "reconstruction",
        measure_reconstruction,
        "Encode and decode pictures: PSNR, SSIM, perceptual and Fréchet distance.\n"
        "Beside the model: WebP of as many bytes, an 8x8 thumbnail, all white; and statistics of the codes.",
        [
            "data/photos --sizes 128 192 256 --by style",
            "imagenet/val --sizes 256 --inception inception.safetensors",
        ],
        ANY_CHECKPOINT,
        needs_data=False,
    )
    parser.add_argument(
        "--photographs", action="store_true", help="measure on scikit-image's photographs instead of DATA"
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=_size,
        default=[None],
        metavar="N",
        help="sides of square centre crops in pixels, or native: whole pictures at their own sizes (default: native)",
    )
    parser.add_argument("--by", metavar="COLUMN", help="a row of the table for each value of a column")
    parser.add_argument(
        "--features", metavar="M", help="folder or Hub name of a vision model: adds the Fréchet distance"
    )
    parser.add_argument(
        "--inception",
        metavar="FILE",
        help="instead, FID's network, a .safetensors file of convert_inception: adds rFID",
    )
    parser.add_argument(
        "--perceptual", metavar="M", help="vision model, or .safetensors file of LPIPS: adds a perceptual distance"
    )
    parser.add_argument(
        "--text-column", metavar="COLUMN", help="text that stands in a picture: adds the share read back (extra `ocr`)"
    )
    _add_count(parser, None, "pictures")
    add_seed_option(parser, "seed of the decoder's noise and of the choice")


def _size(text: str) -> int | None:
    """Argparse type: a side in pixels, or `native` as None."""
    return None if text == NATIVE else positive_int(text)


def measure_reconstruction(args: argparse.Namespace, opened: list, processes):
    """Runs the protocol `reconstruction`."""
    from uniwetok_hf.evaluation.judges import PerceptualNetwork
    from uniwetok_hf.evaluation.reconstruction import evaluate_reconstruction, photographs
    from uniwetok_hf.evaluation.rows import choose_rows
    from uniwetok_hf.evaluation.text_reading import TextReader

    if bool(args.data) == args.photographs:
        raise CommandError("give either DATA or --photographs")
    if args.photographs:
        rows, image_column, by = photographs()[: args.count], "image", args.by or "name"
    else:
        rows, image_column, by = _open_rows(args, opened, [args.image_column], [args.by]), args.image_column, args.by
    text_reader = None
    if args.text_column:
        choose_rows(getattr(rows, "rows", rows), [args.text_column])
        text_reader = TextReader()
    checkpoint = find_checkpoint(args.model)
    feature_model, perceptual = _load_feature_model(args, args.device), None
    if args.features:
        feature_model.seen = _warn_if_seen(feature_model.model, checkpoint)
    if args.perceptual:
        with quiet_transformers():
            perceptual = PerceptualNetwork.from_pretrained(args.perceptual, args.device)
        perceptual.seen = _warn_if_seen(perceptual.network, checkpoint)
    return evaluate_reconstruction(
        load_vision_model(checkpoint, args.device),
        rows,
        args.sizes,
        image_column=image_column,
        by=by,
        feature_model=feature_model,
        perceptual=perceptual,
        text_column=args.text_column,
        text_reader=text_reader,
        seed=args.seed,
        batch_size=args.batch_size,
        processes=processes,
    )


def _add_latents(protocols) -> None:
    parser = _add_protocol(
        protocols,
        "latents",
        measure_latents,
        "What latents and codes know of a label: zero-shot and linear-probe accuracy.\n"
        "Zero-shot needs the teacher of Pre-Post Distillation and its pools; the probe is fitted on another split.",
        [
            "data/photos --label group --size 128",
            "imagenet --label label --size 256 --model runs/stage1/model --teacher google/siglip2-so400m-patch16-384",
        ],
        ANY_CHECKPOINT,
    )
    parser.add_argument("--label", required=True, metavar="COLUMN", help="the label to be read from a picture")
    parser.add_argument("--size", required=True, type=positive_int, metavar="N", help="side of the crops in pixels")
    parser.add_argument("--train-split", default="train", help="where probes are fitted (default: train)")
    parser.add_argument("--no-probe", action="store_true", help="leave linear probes out")
    parser.add_argument("--teacher", metavar="M", help="folder or Hub name of the teacher: adds zero-shot accuracy")
    parser.add_argument(
        "--pools", metavar="DIR", help="pools of the distillation (default: losses/distillation beside the model)"
    )
    parser.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help='text of a class, with {label} in it (default: "a photo of {label}"); repeat to average',
    )
    _add_count(parser, None, "pictures of each split")
    add_seed_option(parser, "seed of the choice")


def measure_latents(args: argparse.Namespace, opened: list, processes):
    """Runs the protocol `latents`."""
    from uniwetok_hf.evaluation.latents import evaluate_latents

    if args.no_probe and args.teacher is None:
        raise CommandError("nothing to measure: --no-probe leaves zero-shot accuracy, which needs --teacher")
    if args.split == args.train_split and not args.no_probe:
        raise CommandError(
            f"--split and --train-split are both {args.split}: a probe is measured on other pictures than those it is "
            "fitted on. Name two splits, or give --no-probe"
        )
    rows = _open_rows(args, opened, [args.image_column], [args.label])
    train_rows = None
    if not args.no_probe:
        train_rows = _open_rows(args, opened, [args.image_column], [args.label], split=args.train_split)
    checkpoint = find_checkpoint(args.model)
    pools, teacher = _load_distillation(args, checkpoint.folder)
    report = evaluate_latents(
        load_vision_model(checkpoint, args.device),
        rows,
        args.label,
        args.size,
        train_rows,
        image_column=args.image_column,
        pools=pools,
        teacher=teacher,
        templates=args.template or ["a photo of {label}"],
        batch_size=args.batch_size,
        processes=processes,
        classes=rows.values_of(args.label) if args.teacher else None,
    )
    if train_rows is not None:
        report.protocol["probes fitted on"] += f" of {args.train_split}"
    return report


def _load_distillation(args: argparse.Namespace, folder: Path):
    """Pools and teacher of the model in `folder`, or None for both when there is no --teacher."""
    if args.teacher is None:
        if args.pools:
            raise CommandError("--pools are of no use without --teacher, whose texts name the classes")
        return None, None
    from uniwetok_hf.losses.distillation import PrePostDistillation
    from uniwetok_hf.losses.teacher import Teacher
    from uniwetok_hf.provenance import RECORD, read_training_record, weight_digests

    beside = folder.resolve().parent / "losses" / "distillation"
    pools = None
    if args.pools or beside.is_dir():
        pools = PrePostDistillation.from_pretrained(args.pools or beside).to(args.device)
    else:
        _warn_once(f"no --pools, and none in {beside}: zero-shot accuracy of the teacher only")
    with quiet_transformers(), user_errors(OSError):
        teacher = Teacher.from_pretrained(args.teacher).to(args.device)
    record = read_training_record(folder)
    taught = [model for model in record.loss_models if model.role == "teacher"] if record else []
    own = set(weight_digests(teacher.model))
    if taught and not any(own & set(model.weights) for model in taught):
        names = ", ".join(model.name for model in taught)
        raise CommandError(f"--teacher {args.teacher} is not the teacher of this model, which {RECORD} calls {names}")
    return pools, teacher


def _add_generation(protocols) -> None:
    parser = _add_protocol(
        protocols,
        "generation",
        measure_generation,
        "Generate pictures from prompts: R-precision, Fréchet distance, precision and recall.\n"
        "A judge compares each with its prompt, --features compares all as a set; neither may be a teacher.",
        [
            "captions.parquet --split train --judge judges/clip --count 500",
            'coco --prompt "a photo of {text}" --judge openai/clip-vit-base-patch32 --within category',
        ],
        "pipeline folder",
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", default="{text}", help='with columns in braces (default: "{text}")'
    )
    parser.add_argument(
        "--within", metavar="COLUMN", help="rivals have the same value of this column as the right one"
    )
    parser.add_argument(
        "--rivals", type=positive_int, default=31, metavar="N", help="candidates beside the right one (default: 31)"
    )
    parser.add_argument("--features", metavar="M", help="vision model for the distances of sets (default: the judge)")
    _add_generation_options(parser)
    _add_count(parser, 200, "pictures")
    add_seed_option(parser, "seed of the first picture and of all choices")


def measure_generation(args: argparse.Namespace, opened: list, processes):
    """Runs the protocol `generation`."""
    from uniwetok_hf.evaluation.generation import evaluate_generation
    from uniwetok_hf.evaluation.rows import template_columns

    columns = [args.within, *template_columns(args.prompt)]
    # Half of them as other real pictures.
    rows = _open_rows(args, opened, [args.image_column], columns, 2 * args.count)
    checkpoint = find_checkpoint(args.model, ("pipeline",))
    judge = _load_judge(args.judge, args.device, checkpoint)
    report = evaluate_generation(
        load_pipeline(checkpoint, args.device),
        rows,
        args.prompt,
        image_column=args.image_column,
        within=args.within,
        count=args.count,
        judge=judge,
        feature_model=_load_judge(args.features, args.device, checkpoint) if args.features else judge,
        num_rivals=args.rivals,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        seed=args.seed,
        batch_size=args.batch_size,
        processes=processes,
    )
    # Of the rows that were read, those that pictures were generated of.
    parts = [part for part in (report.protocol["rows"], args.chosen) if part != "all"]
    args.chosen = " of ".join(parts) or "all"
    return report


def _add_editing(protocols) -> None:
    parser = _add_protocol(
        protocols,
        "editing",
        measure_editing,
        "Edit pictures: is the result nearest to the target, among the source and other candidates?\n"
        "DATA has the columns source, instruction and target, and may have others, lists of wrong results.",
        ["edits.parquet --split train --by kind", "edits.py:load_edits --count 300 --judge judges/clip"],
        "pipeline folder",
        has_image_column=False,
    )
    parser.add_argument("--by", metavar="COLUMN", help="a row of the table for each value of a column")
    parser.add_argument(
        "--rivals", type=positive_int, default=6, metavar="N", help="candidates beside target and source (default: 6)"
    )
    _add_generation_options(parser)
    add_edit_options(parser)
    _add_count(parser, 200, "edits")
    add_seed_option(parser, "seed of the first picture and of all choices")


def measure_editing(args: argparse.Namespace, opened: list, processes):
    """Runs the protocol `editing`."""
    from uniwetok_hf.evaluation.editing import evaluate_editing

    rows = _open_rows(args, opened, ["source", "target"], ["instruction", args.by], picture_lists=["others"])
    checkpoint = find_checkpoint(args.model, ("pipeline",))
    judge = _load_judge(args.judge, args.device, checkpoint)
    pipe = load_pipeline(checkpoint, args.device)
    return evaluate_editing(
        as_edit_pipeline(pipe),
        pipe,
        rows,
        by=args.by,
        judge=judge,
        num_rivals=args.rivals,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        image_guidance_scale=args.image_guidance_scale,
        describe_first=args.describe_first,
        seed=args.seed,
        batch_size=args.batch_size,
        processes=processes,
    )


def _add_captioning(protocols) -> None:
    parser = _add_protocol(
        protocols,
        "captioning",
        measure_captioning,
        "Answer questions about pictures: exact match and F1 of the words, by kind.\n"
        "DATA has the columns image, question and answer.",
        ["vqa.parquet --split train --by kind", "questions.py:load_questions --count 300"],
        "pipeline folder",
    )
    parser.add_argument("--by", metavar="COLUMN", help="a row of the table for each value of a column")
    parser.add_argument(
        "--max-new-tokens", type=positive_int, metavar="N", default=40, help="longest answer in tokens (default: 40)"
    )
    _add_count(parser, 500, "rows")
    add_seed_option(parser, "seed of the choice")


def measure_captioning(args: argparse.Namespace, opened: list, processes):
    """Runs the protocol `captioning`."""
    from uniwetok_hf.evaluation.captioning import evaluate_captioning

    rows = _open_rows(args, opened, [args.image_column], ["question", "answer", args.by])
    mllm, processor = load_language_model(args.model, args.device)
    return evaluate_captioning(
        mllm, processor, rows, args.image_column, args.by, args.max_new_tokens, args.batch_size, processes
    )


def _add_protocol(
    protocols,
    name: str,
    measure,
    description: str,
    examples: list[str],
    model: str,
    needs_data: bool = True,
    has_image_column: bool = True,
) -> argparse.ArgumentParser:
    """A protocol with the options that all have. `measure(args, opened, processes)` returns its report, and adds
    the `PictureRows` that it reads to `opened`."""
    parser = add_command(protocols, name, run_evaluate, description, examples)
    parser.set_defaults(measure=measure)
    parser.add_argument(
        "data",
        nargs=None if needs_data else "?",
        metavar="DATA",
        help="folder of `save_to_disk`, folder of pictures, Parquet or WebDataset files, Hub name of a dataset, or "
        "FILE.py:NAME, a function that takes the name of the split and returns rows",
    )
    add_data_options(parser, "test", has_image_column)
    add_model_options(parser, model)
    parser.add_argument(
        "--output", metavar="DIR", help=f"folder of the result files (default: results/{name}), made if needed"
    )
    return parser


def add_data_options(parser: argparse.ArgumentParser, split: str, has_image_column: bool = True) -> None:
    """Which rows of DATA are read, and how; `split` is the default."""
    parser.add_argument("--split", default=split, help=f"which part of it (default: {split})")
    parser.add_argument("--name", help="configuration of a dataset on the Hub")
    parser.add_argument("--streaming", action="store_true", help="read the dataset without a copy of it on disk")
    if has_image_column:
        parser.add_argument("--image-column", default="image", metavar="COLUMN", help="pictures (default: image)")
    parser.add_argument("--batch-size", type=positive_int, default=16, metavar="N", help="at once (default: 16)")
    add_max_skipped_share(parser)


def _add_count(parser: argparse.ArgumentParser, default: int | None, what: str) -> None:
    usual = "all" if default is None else default
    parser.add_argument(
        "--count", type=positive_int, default=default, metavar="N", help=f"{what}, chosen by --seed (default: {usual})"
    )


def _add_generation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--judge",
        metavar="M",
        help="folder or Hub name of a CLIP, SigLIP, ... that no training loss used; only pixels are compared without",
    )
    parser.add_argument(
        "--steps", type=positive_int, metavar="N", help="diffusion steps per patch (default: the model's)"
    )
    parser.add_argument(
        "--guidance-scale", type=finite_float, metavar="W", help="weight of the prompt (default: the model's)"
    )


def _add_classes(protocols) -> None:
    parser = add_command(
        protocols,
        "classes",
        run_evaluate_classes,
        "Compare pictures of `uniwetok sample-classes` with real ones, as sets.\n"
        "With the weights of FID's network: FID, Inception score, precision, recall; else by any vision model.",
        [
            "results/imagenet_b/samples.npz imagenet256.npz --inception inception.safetensors",
            "results/classes/samples.npz real.npz --features timm/inception_v3.tf_in1k",
        ],
    )
    parser.add_argument("samples", metavar="SAMPLES", help="npz with arr_0, uint8 [N, H, W, 3]")
    parser.add_argument("references", metavar="REAL", help="the same of real pictures")
    parser.add_argument(
        "--inception", metavar="FILE", help="FID's Inception network, a .safetensors file of convert_inception"
    )
    parser.add_argument("--features", metavar="M", help="instead, folder or Hub name of a vision model")
    parser.add_argument("--output", metavar="DIR", help="folder of the result files (default: beside SAMPLES)")
    parser.add_argument("--batch-size", type=positive_int, default=64, metavar="N", help="at once (default: 64)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ... or mps")


def run_evaluate_classes(args: argparse.Namespace) -> None:
    """`uniwetok evaluate classes`."""
    from uniwetok_hf.evaluation.class_scores import evaluate_classes
    from uniwetok_hf.evaluation.processes import Processes

    output = output_folder(args.output or Path(args.samples).parent / "scores_of_uniwetok")
    with user_errors(ValueError, ImportError):
        processes = Processes.join()
        feature_model = _load_feature_model(args, str(resolve_device(device_of_process(args.device))))
        if feature_model is None:
            raise CommandError("give either --inception or --features")
        report = evaluate_classes(args.samples, args.references, feature_model, args.batch_size, processes)
    report.model = Path(args.samples).resolve().parent.name
    report.data, report.split = Path(args.references).name, "all"
    if processes.is_main:
        show_report(report, output)


def _load_feature_model(args: argparse.Namespace, device: str):
    """Of --inception or --features; None without both."""
    from uniwetok_hf.evaluation.inception import InceptionFeatures
    from uniwetok_hf.evaluation.judges import Judge

    if args.inception and args.features:
        raise CommandError("give either --inception or --features")
    if args.inception:
        return InceptionFeatures.from_file(args.inception, device)
    if args.features:
        with quiet_transformers():
            return Judge.from_pretrained(args.features, device)
    return None


def _open_rows(
    args: argparse.Namespace,
    opened: list,
    pictures: list[str],
    columns: list[str | None],
    count: int | None = None,
    split: str | None = None,
    picture_lists: Sequence[str] = (),
):
    """The chosen rows of DATA as `PictureRows`, with the columns that are not None."""
    from uniwetok_hf.data.places import is_place
    from uniwetok_hf.data.sources import PictureSource, open_source, rows_of_place
    from uniwetok_hf.evaluation.rows import PictureRows, describe_choice

    split, count = split or args.split, count or args.count
    with _bars_on_terminals():
        if is_place(args.data):  # as it is: `open_source` would encode every picture
            rows = rows_of_place(args.data, split)
        else:
            rows = open_source(PictureSource(args.data, split, args.name, pictures[0], args.streaming))
        if not opened:
            args.chosen = describe_choice(rows, count, args.seed)
        read = PictureRows(
            rows, pictures, filter(None, columns), count, args.seed, picture_lists, args.max_skipped_share
        )
    opened.append(read)
    return read


def _load_judge(source: str | None, device: str, checkpoint: Checkpoint):
    """The judge of generated pictures, or None; one that a training loss used is refused."""
    from uniwetok_hf.evaluation.judges import Judge

    if source is None:
        return None
    with quiet_transformers():
        return Judge.from_pretrained(source, device, unseen_by=checkpoint.folder)


def _warn_if_seen(network, checkpoint: Checkpoint) -> str:
    """Whether a training loss used `network`, in words: for distances of reconstructions it is only a warning."""
    from uniwetok_hf.provenance import find_seen

    seen, words = find_seen(network, checkpoint.folder)
    if seen is not None:
        _warn_once(f"the model was trained against {seen.name} ({seen.role}): the scores that it gives are flattered")
    return words


def _warn_once(text: str) -> None:
    """Warns from the first process only."""
    if os.environ.get("RANK", "0") == "0":
        warn(text)


@contextlib.contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """Lets `datasets` show its bars on terminals only, like ours."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    had_bars = not are_progress_bars_disabled()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        if had_bars:
            enable_progress_bars()
