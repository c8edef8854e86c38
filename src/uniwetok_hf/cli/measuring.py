"""What `uniwetok evaluate` measures: from the options of a protocol to its report."""

import argparse
import contextlib
import sys
from collections.abc import Iterator

from .common import CommandError, user_errors, warn
from .loading import EMBEDDED, find_checkpoint, load_language_model, load_pipeline, load_vision_model


KINDS = ("pipeline", "vision", "mllm")


def _open(args: argparse.Namespace, columns: list[str], count: int | None, split: str | None = None):
    """Chosen rows of DATA, whose first column is that of the pictures, and their number where it is known."""
    from uniwetok_hf.data.sources import PictureSource, open_source
    from uniwetok_hf.evaluation.rows import choose_rows

    source = PictureSource(args.data, split or args.split, args.name, columns[0], args.streaming)
    with _bars_on_terminals():
        rows = choose_rows(open_source(source), columns, count, args.seed)
    return rows, len(rows) if hasattr(rows, "__len__") else count


@contextlib.contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """Lets `datasets` show its bars as we do ours: on terminals only."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    had_bars = not are_progress_bars_disabled()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        if had_bars:
            enable_progress_bars()


def _report(args: argparse.Namespace, protocol: dict, rows: list, skipped: list[str], facts: dict | None = None):
    """The report of a finished evaluation, and a warning of what could not be read."""
    from uniwetok_hf.evaluation.reports import Report
    from uniwetok_hf.provenance import short_name

    if skipped:
        warn(f"{len(skipped)} pictures could not be read and are left out; the first: {skipped[0]}")
        protocol["pictures that could not be read"] = len(skipped)
    data = short_name(args.data) if args.data else "photographs"
    if args.name:
        data += f" {args.name}"
    split = args.split if args.data else "scikit-image"
    return Report(args.kind, short_name(args.model or EMBEDDED), data, split, protocol, rows, facts or {})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from telling, in many lines, what it loads."""
    from transformers.utils import logging

    had_bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()


def _load_judge(source: str | None, device: str):
    from uniwetok_hf.evaluation.judges import Judge

    with _quiet():
        return None if source is None else Judge.from_pretrained(source, device)


def _seen(network, args: argparse.Namespace) -> str:
    """Whether a training loss looked through `network`: for distances of reconstructions it is only told."""
    from uniwetok_hf.provenance import find_seen

    seen, words = find_seen(network, find_checkpoint(args.model, KINDS).folder)
    if seen is not None:
        warn(f"the model was trained against {seen.name} ({seen.role}): the figures that it gives are flattered")
    return words


def _unseen(judge, args: argparse.Namespace) -> str:
    """As `_seen`, for drawings: a judge that a training loss looked through is refused."""
    from uniwetok_hf.provenance import check_unseen

    return check_unseen(judge.model, judge.name, find_checkpoint(args.model, KINDS).folder)


def reconstruction(args: argparse.Namespace):
    """PSNR, SSIM, perceptual and Fréchet distance at each of --sizes."""
    import PIL

    from uniwetok_hf.evaluation.networks import describe_network, load_network
    from uniwetok_hf.evaluation.reconstruction import Judges, evaluate_reconstruction, photographs
    from uniwetok_hf.evaluation.rows import readable

    if bool(args.data) == args.photographs:
        raise CommandError("give either DATA or --photographs")
    if args.photographs:
        args.image_column, args.by = "image", args.by or "name"
    protocol = {
        "crop": "the same for reference and output: scaled to cover the size, centre cut out; native: not scaled",
        "compared": "8-bit RGB; PSNR and SSIM (7x7 windows) are means over pictures",
        "seed of the decoder's noise": args.seed,
        "WebP": f"Pillow {PIL.__version__}, the best of 8 scales, its quality the highest that fits, header included",
    }
    judges = Judges(_load_judge(args.features, args.device))
    if judges.feature_model is not None:
        protocol["features of the Fréchet distance"] = judges.feature_model.describe()
        protocol["did training losses see them"] = _seen(judges.feature_model.model, args)
    if args.perceptual:
        with _quiet():
            judges.perceptual = load_network(args.perceptual, args.device)
        protocol["perceptual distance"] = describe_network(judges.perceptual, args.perceptual)
        protocol["did training losses see it"] = _seen(judges.perceptual, args)
    model = load_vision_model(args.model, args.device)
    table, facts, skipped = [], {}, []
    for size in args.sizes:
        skipped.clear()
        if args.photographs:
            rows, total = photographs()[: args.count], None
        else:
            columns = [args.image_column, *([args.by] if args.by else [])]
            rows, total = _open(args, columns, args.count)
        rows = readable(rows, [args.image_column], skipped)
        found, numbers = evaluate_reconstruction(
            model, rows, size, args.image_column, args.by, args.seed, judges, args.batch_size, total
        )
        table += found
        facts[f"codes at {size or 'native'}"] = numbers
    return _report(args, protocol, table, skipped, facts)


def latents(args: argparse.Namespace):
    """Zero-shot and linear-probe accuracy of latents and codes."""
    from uniwetok_hf.evaluation.latents import class_embeddings, embed_rows, score_latents
    from uniwetok_hf.evaluation.rows import readable
    from uniwetok_hf.provenance import short_name

    templates = args.template or ["a photo of {label}"]
    pools, teacher = _load_distillation(args)
    model = load_vision_model(args.model, args.device)
    protocol = {
        "crop": f"scaled to cover {args.size}x{args.size}, centre cut out",
        "label": args.label,
        "probe": "logistic regression (L2 0.001, standardized, L-BFGS) on the mean over tokens of each picture",
        "chance of a probe": "the most common label of the split that it was fitted on",
    }
    skipped: list[str] = []

    def embed(split: str):
        rows, total = _open(args, [args.image_column, args.label], args.count, split)
        names = getattr((rows.features or {}).get(args.label), "names", None)
        read = readable(rows, [args.image_column], skipped)
        if names:
            read = (row | {args.label: names[row[args.label]]} for row in read)
        return embed_rows(
            model, read, args.size, args.label, args.image_column, pools, teacher, args.batch_size, total
        )

    test = embed(args.split)
    classes, texts = sorted(set(test.labels)), None
    if teacher is not None:
        texts = class_embeddings(teacher, classes, templates)
        protocol["teacher"] = short_name(teacher.name)
        protocol["texts"] = f"{len(classes)} classes of the split, {', '.join(templates)}"
    train = None
    if not args.no_probe:
        train = embed(args.train_split)
        protocol["probes fitted on"] = f"{len(train.labels)} pictures of {args.train_split}"
    rows = score_latents(test, train, classes, texts)
    if not rows:
        raise CommandError("nothing to measure: --no-probe leaves zero-shot accuracy, which needs --teacher")
    return _report(args, protocol, rows, skipped)


def _load_distillation(args: argparse.Namespace):
    """Pools and teacher, or None for both when there is no --teacher."""
    if args.teacher is None:
        if args.pools:
            raise CommandError("--pools are of no use without --teacher, whose texts name the classes")
        return None, None
    from uniwetok_hf.losses.distillation import PrePostDistillation
    from uniwetok_hf.losses.teacher import Teacher
    from uniwetok_hf.provenance import RECORD, read_training_record, weight_digests

    folder = find_checkpoint(args.model, KINDS).folder
    beside = folder.resolve().parent / "losses" / "distillation"
    pools = None
    if args.pools or beside.is_dir():
        pools = PrePostDistillation.from_pretrained(args.pools or beside).to(args.device)
    else:
        warn(f"no --pools, and none in {beside}: zero-shot accuracy of the teacher only")
    with _quiet(), user_errors(OSError):
        teacher = Teacher.from_pretrained(args.teacher).to(args.device)
    record = read_training_record(folder)
    taught = [model for model in record.loss_models if model.role == "teacher"] if record else []
    own = set(weight_digests(teacher.model))
    if taught and not any(own & set(model.weights) for model in taught):
        names = ", ".join(model.name for model in taught)
        raise CommandError(f"--teacher {args.teacher} is not the teacher of this model, which {RECORD} calls {names}")
    return pools, teacher


def _drawing_call(args: argparse.Namespace) -> dict:
    return {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}


def _drawing_protocol(args: argparse.Namespace, pipe) -> dict:
    config = pipe.config
    return {
        "diffusion steps a patch": args.steps or config.default_num_inference_steps,
        "guidance scale": _words_scale(args, pipe),
        "seeds": f"{args.seed} + number of the drawing",
        "pixels": "squared difference of 32x32 thumbnails",
    }


def _edit_pipe(args: argparse.Namespace, pipe):
    """The pipeline as one that edits."""
    from uniwetok_hf import UniWeTokEditPipeline

    defaults = {}
    if args.image_guidance_scale is not None:
        defaults["default_guidance_scale"] = _words_scale(args, pipe)
        defaults["default_image_guidance_scale"] = args.image_guidance_scale
    if args.describe_first is not None:
        defaults["default_describe_first"] = args.describe_first
    edit_pipe = UniWeTokEditPipeline.from_pipe(pipe, **defaults)
    edit_pipe.set_progress_bar_config(disable=True)
    return edit_pipe


def _words_scale(args: argparse.Namespace, pipe) -> float:
    return pipe.config.default_guidance_scale if args.guidance_scale is None else args.guidance_scale


def _edit_protocol(args: argparse.Namespace, edit_pipe) -> dict:
    protocol = {"edits described first": "yes" if edit_pipe.config.default_describe_first else "no"}
    scale = edit_pipe.scale_for_images(_words_scale(args, edit_pipe), None)
    if scale is not None:
        protocol["image guidance scale"] = scale
        protocol["negative prompt"] = edit_pipe.config.default_negative_prompt or "none"
    return protocol


def generation(args: argparse.Namespace):
    """Drawings from prompts beside real pictures."""
    from uniwetok_hf.evaluation.generation import NUM_NEIGHBOURS, evaluate_generation

    rows, skipped = _drawing_rows(args)
    judge = _load_judge(args.judge, args.device)
    features = _load_judge(args.features, args.device) if args.features else judge
    pipe = load_pipeline(args.model, args.device)
    protocol = {"prompts": f"{len(rows.prompts)}, such as: {rows.prompts[0]}", **_drawing_protocol(args, pipe)}
    protocol["rivals"] = f"up to {args.rivals} others" + (f" of the same {args.within}" if rows.groups else "")
    if judge is not None:
        protocol |= {"judge": judge.describe(), "did training losses see the judge": _unseen(judge, args)}
        if not judge.reads_texts:
            raise CommandError(f"--judge {args.judge} reads no texts: give a dual encoder such as CLIP or SigLIP")
    if features is not None:
        protocol["features of the sets"] = features.describe()
        protocol["did training losses see the features"] = _unseen(features, args)
        protocol["precision and recall"] = f"{NUM_NEIGHBOURS} nearest neighbours"
    found = evaluate_generation(
        pipe, rows, judge, features, args.rivals, args.seed, args.batch_size, **_drawing_call(args)
    )
    return _report(args, protocol, found, skipped)


def _drawing_rows(args: argparse.Namespace):
    """Prompts with their pictures, and as many other pictures where there are enough; what could not be read."""
    from uniwetok_hf.evaluation.generation import DrawingRows
    from uniwetok_hf.evaluation.rows import EMOJI_PROMPT, fill_template, is_emoji_folder, readable

    is_emoji = is_emoji_folder(args.data)
    template = args.prompt or (EMOJI_PROMPT if is_emoji else "{text}")
    args.within = args.within or ("style" if is_emoji else None)
    columns = [args.image_column, *([args.within] if args.within else [])]
    skipped: list[str] = []
    rows = list(readable(_open(args, columns, 2 * args.count)[0], [args.image_column], skipped))
    others = None
    if len(rows) >= 2 * args.count:
        others = [row[args.image_column] for row in rows[1 : 2 * args.count : 2]]
        rows = rows[0 : 2 * args.count : 2]
    elif len(rows) > args.count:
        rows = list(readable(_open(args, columns, args.count)[0], [args.image_column], skipped))
    prompts = [fill_template(template, row) for row in rows]
    pictures = [row[args.image_column] for row in rows]
    groups = [str(row[args.within]) for row in rows] if args.within else None
    return DrawingRows(prompts, pictures, groups, others), skipped


def editing(args: argparse.Namespace):
    """Edits, and which candidate each result is nearest to."""
    from uniwetok_hf.evaluation.editing import evaluate_editing

    edits, skipped = _edit_pairs(args)
    if not edits:
        raise CommandError(f"{args.data} has no edits in {args.split}")
    judge = _load_judge(args.judge, args.device)
    pipe = load_pipeline(args.model, args.device)
    edit_pipe = _edit_pipe(args, pipe)
    protocol = {
        "candidates": f"target, source, up to {args.rivals} others",
        **_drawing_protocol(args, pipe),
        **_edit_protocol(args, edit_pipe),
    }
    if judge is not None:
        protocol |= {"judge": judge.describe(), "did training losses see the judge": _unseen(judge, args)}
    found = evaluate_editing(edit_pipe, pipe, edits, judge, args.seed, args.batch_size, **_drawing_call(args))
    return _report(args, protocol, found, skipped)


def _edit_pairs(args: argparse.Namespace):
    from uniwetok_hf.evaluation.editing import edits_of_pairs
    from uniwetok_hf.evaluation.rows import readable

    skipped: list[str] = []
    columns = ["source", "instruction", "target", *([args.by] if args.by else [])]
    rows = list(readable(_open(args, columns, args.count)[0], ["source", "target"], skipped))
    return edits_of_pairs(rows, args.rivals, args.seed, args.by), skipped


def captioning(args: argparse.Namespace):
    """Answers to questions about pictures."""
    from uniwetok_hf.evaluation.captioning import (
        EMOJI_QUESTIONS,
        Question,
        answer_all,
        questions_of_emoji,
        score_answers,
    )
    from uniwetok_hf.evaluation.rows import is_emoji_folder, readable

    skipped: list[str] = []
    is_emoji = is_emoji_folder(args.data)
    columns = list(EMOJI_QUESTIONS) if is_emoji else ["question", "answer", *([args.by] if args.by else [])]
    rows = _open(args, [args.image_column, *columns], args.count)[0]
    read = readable(rows, [args.image_column], skipped)
    if is_emoji:
        questions = questions_of_emoji(read)
    else:
        questions = [
            Question(row[args.image_column], row["question"], row["answer"], str(row[args.by]) if args.by else "")
            for row in read
        ]
    mllm, processor = load_language_model(args.model, args.device)
    answers = answer_all(mllm, processor, questions, args.max_new_tokens, args.batch_size)
    protocol = {
        "answers": f"the most likely ones, of at most {args.max_new_tokens} tokens",
        "compared": "case and punctuation do not count",
        "chance": "giving the most common right answer of each kind every time",
    }
    return _report(args, protocol, score_answers(answers, questions), skipped)
