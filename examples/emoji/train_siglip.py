# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Trains a small SigLIP on the emoji set: the teacher of a small image tokenizer (Pre-Post Distillation), or, with
another width and seed, the judge of its pictures.

    python examples/emoji/train_siglip.py --config examples/emoji/emoji_siglip.yaml

Model and loss are transformers' SigLIP and its sigmoid loss (Zhai et al. 2023), trained by transformers' `Trainer`;
what is written here are the pairs and which of them are right:

- A picture comes with one of three texts: its label, "a <style> emoji of <label>", or a few of its keywords.
- The same concept is in the set in 3 styles and up to 6 skin tones, so a text of one picture of a batch is often true
  of others. SigLIP calls these negatives. Here a text is a set of statements (label, style, keywords), and a pair is
  positive when all of them are true of the picture: another style is positive for a label and negative for a text with
  a style; another skin tone, having another label, is a hard negative.
- Pictures are cropped, never mirrored or recoloured: "facing right" and "medium-light skin tone" are labels.
- Pair, crop and text are functions of the seed and the pair's running number, so a resumed run goes on as if it had
  not stopped.

Texts are padded to the full length and the last position is pooled, as in SigLIP. With several processes each compares
its own pictures with its own texts only.
"""

import argparse
import json
import math
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import PartialState
from emoji_tasks import CAPTION
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import (
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from uniwetok_hf.data.samples import AUGMENTATION, EpochOrder, sample_generator
from uniwetok_hf.evaluation.choices import cosines, top_k_outcomes
from uniwetok_hf.files import save_whole
from uniwetok_hf.losses.teacher import Teacher
from uniwetok_hf.signals import EXIT_CODE, Stopped
from uniwetok_hf.training.agreement import any_process
from uniwetok_hf.training.checkpoints import check_unfinished, make_output_folder
from uniwetok_hf.training.config import APPLY, KEEP, explain, read_config, setting
from uniwetok_hf.training.resume import check_resume, saved_settings
from uniwetok_hf.training.run import choose_precision, seeded_weights, stopped_after, stops_after_step


SETTINGS = "settings.json"  # in each checkpoint


@dataclass
class SiglipTrainingConfig:
    """One training."""

    output_dir: str = setting(
        help="folder of the run: checkpoints, and at the end `model` and zero_shot.json", on_resume=APPLY
    )
    data: str = setting(help="folder made by emoji_data.py", on_resume=KEEP)
    max_train_steps: int = setting(help="optimizer steps", on_resume=KEEP)
    batch_size: int = setting(help="pairs per step over all processes", on_resume=KEEP)
    splits: list[str] = setting(["train"], "splits of the data to learn from", on_resume=KEEP)
    validation_split: str | None = setting(
        "validation", "split whose labels are told apart at the end; null: none", on_resume=APPLY
    )
    image_size: int = setting(64, "side in pixels", on_resume=KEEP)
    vision_model: dict = setting({}, "fields of transformers' SiglipVisionConfig", on_resume=KEEP)
    text_model: dict = setting({}, "fields of SiglipTextConfig", on_resume=KEEP)
    text_weights: list[float] = setting(
        [1.0, 1.0, 1.0],
        "how often a picture's text is its label, its label with the style, some of its keywords",
        on_resume=KEEP,
    )
    group_size: int = setting(
        1,
        "pictures of each concept in an epoch, which come together; over 1, the batches hold what is hard to tell "
        "apart: the same thing in other styles and skin tones",
        on_resume=KEEP,
    )
    text_length: int = setting(24, "tokens to which every text is padded or cut", on_resume=KEEP)
    vocab_size: int = setting(2048, "entries of the text vocabulary, which is trained on the texts", on_resume=KEEP)
    crop_probability: float = setting(0.75, "how often a crop is shown instead of the whole picture", on_resume=KEEP)
    crop_scale: list[float] = setting(
        [0.6, 1.0], "smallest and largest side of a crop over the picture's", on_resume=KEEP
    )
    logit_bias: float = setting(
        -10.0, "where the bias of the logits starts; -ln(batch_size) learns sooner", on_resume=KEEP
    )
    learning_rate: float = setting(1e-3, "of AdamW, falling to 0 as a cosine", on_resume=KEEP)
    lr_warmup_steps: int = setting(0, "steps until the learning rate is reached", on_resume=KEEP)
    weight_decay: float = setting(0.1, "decoupled weight decay", on_resume=KEEP)
    mixed_precision: str = setting(
        "no", "auto, no, fp16 or bf16; auto chooses what the device does fast", on_resume=KEEP
    )
    attn_implementation: str = setting(
        "eager", "of transformers; for so short sequences eager is fastest on CPUs", on_resume=APPLY
    )
    seed: int = setting(0, "of weights, order, crops and texts", on_resume=KEEP)
    logging_steps: int = setting(50, "steps between lines of the log", on_resume=APPLY)
    checkpointing_steps: int = setting(500, "steps between checkpoints, of which the last is kept", on_resume=APPLY)
    report_to: list[str] = setting([], "trackers: tensorboard, wandb, ...", on_resume=APPLY)

    def __post_init__(self):
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"`crop_scale` must be two sides in (0, 1], the smaller first, got {self.crop_scale}.")
        if len(self.text_weights) != 3 or min(self.text_weights) < 0 or sum(self.text_weights) == 0:
            raise ValueError(
                "`text_weights` must be three numbers of 0 or more, of labels, of labels with the style, and of "
                f"keywords, got {self.text_weights}."
            )
        if self.group_size < 1:
            raise ValueError(f"`group_size` must be 1 or more, got {self.group_size}.")
        if self.mixed_precision not in ("auto", "no", "fp16", "bf16"):
            raise ValueError(f"`mixed_precision` must be auto, no, fp16 or bf16, got {self.mixed_precision!r}.")


Statement = tuple[str, str]


@dataclass
class Pair:
    """A picture and a text: `pixel_values` [3, size, size] in [-1, 1]; all that is true of the picture (`facts`), and
    what the `text` says (`statements`)."""

    pixel_values: torch.Tensor
    facts: frozenset[Statement]
    text: str
    statements: frozenset[Statement]


class ConceptOrder(EpochOrder):
    """An order of rows in which each epoch has every key once, in a new order, with `size` of its rows that follow
    each other, chosen anew; all of them where there are fewer. So keys with many rows (people in all skin tones) do
    not outweigh the others."""

    def __init__(self, keys: Sequence, size: int, seed: int):
        self.rows, self.size = {}, size
        for row, key in enumerate(keys):
            self.rows.setdefault(key, []).append(row)
        super().__init__(sum(min(size, len(rows)) for rows in self.rows.values()), seed)

    def _arrange(self, generator: torch.Generator) -> list[int]:
        groups = list(self.rows.values())
        order = []
        for place in torch.randperm(len(groups), generator=generator).tolist():
            chosen = torch.randperm(len(groups[place]), generator=generator)[: self.size].tolist()
            order += [groups[place][index] for index in chosen]
        return order


class EmojiPairs(Dataset):
    """`length` pairs of the rows of an emoji set; item n is the n-th pair of the training.

    Raises:
        ValueError: when there are no rows.
    """

    def __init__(
        self,
        rows,
        length: int,
        image_size: int,
        seed: int,
        crop_probability: float = 0.0,
        crop_scale: Sequence[float] = (1.0, 1.0),
        group_size: int = 1,
        text_weights: Sequence[float] = (1.0, 1.0, 1.0),
    ):
        if len(rows) == 0:
            raise ValueError("`rows` is empty: there is nothing to learn from.")
        self.images = rows.select_columns(["image"])
        self.texts = rows.select_columns(["label", "style", "keywords"]).to_list()
        self.length, self.image_size, self.seed = length, image_size, seed
        self.crop_probability, self.crop_scale = crop_probability, crop_scale
        self.text_weights = torch.tensor(text_weights, dtype=torch.float32)
        self.order = ConceptOrder(rows["concept"], group_size, seed)

    def __len__(self) -> int:
        return self.length

    def all_texts(self) -> list[str]:
        """Every label, caption and keyword of the rows."""
        return [text for row in self.texts for text in (row["label"], caption_of(row), *row["keywords"])]

    def __getitem__(self, number: int) -> Pair:
        index = self.order[number]
        generator = sample_generator(self.seed, number, AUGMENTATION)
        text, statements = self._describe(self.texts[index], generator)
        return Pair(
            pixel_values=self._picture(self.images[index]["image"], generator),
            facts=facts_of(self.texts[index]),
            text=text,
            statements=statements,
        )

    def _describe(self, row: dict, generator: torch.Generator) -> tuple[str, frozenset[Statement]]:
        """One of the row's texts and what it states."""
        kind = torch.multinomial(self.text_weights, 1, generator=generator).item()
        if kind == 2 and row["keywords"]:
            count = torch.randint(1, 5, (), generator=generator).item()
            picks = torch.randperm(len(row["keywords"]), generator=generator)[:count].tolist()
            keywords = [row["keywords"][pick] for pick in picks]
            return ", ".join(keywords), frozenset(("keyword", keyword) for keyword in keywords)
        if kind == 1:
            return caption_of(row), frozenset([("label", row["label"]), ("style", row["style"])])
        return row["label"], frozenset([("label", row["label"])])

    def _picture(self, image: Image.Image, generator: torch.Generator) -> torch.Tensor:
        crop, scale, left, top = torch.rand(4, generator=generator).tolist()
        smallest, largest = self.crop_scale
        scale = smallest + (largest - smallest) * scale if crop < self.crop_probability else 1.0
        width, height = image.width * scale, image.height * scale
        left, top = left * (image.width - width), top * (image.height - height)
        return read_pixels(image, self.image_size, (left, top, left + width, top + height))


def caption_of(row: dict) -> str:
    return CAPTION.format(style=row["style"], what=row["label"])


def facts_of(row: dict) -> frozenset[Statement]:
    """All that a text may state of a row's picture."""
    keywords = [("keyword", keyword) for keyword in row["keywords"]]
    return frozenset([("label", row["label"]), ("style", row["style"]), *keywords])


def read_pixels(image: Image.Image, size: int, box: tuple[float, ...] | None = None) -> torch.Tensor:
    """A picture, or the `box` (left, top, right, bottom) of it, as float [3, size, size] in [-1, 1]."""
    image = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


class PairCollator:
    """Pairs to the model's inputs: `pixel_values` [B, 3, size, size], `input_ids` [B, length], and `labels` [B texts,
    B pictures], +1 where the text is true of the picture and -1 elsewhere."""

    def __init__(self, text_tokenizer: PreTrainedTokenizerFast):
        self.text_tokenizer = text_tokenizer

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
        texts = self.text_tokenizer(
            [pair.text for pair in pairs], padding="max_length", truncation=True, return_tensors="pt"
        )
        is_true = torch.tensor([[text.statements <= picture.facts for picture in pairs] for text in pairs])
        return {
            "pixel_values": torch.stack([pair.pixel_values for pair in pairs]),
            "input_ids": texts["input_ids"],
            "labels": torch.where(is_true, 1.0, -1.0),
        }


def sigmoid_loss(outputs, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
    """SigLIP's loss with any number of positives: `labels` [B texts, B pictures] of +1 and -1."""
    return -F.logsigmoid(labels * outputs.logits_per_text).sum(-1).mean()


def train_text_tokenizer(texts: Iterable[str], vocab_size: int, length: int) -> PreTrainedTokenizerFast:
    """Lower-case byte-level BPE that pads texts to `length` tokens.

    Raises:
        ValueError: when `vocab_size` has no room for the 256 bytes and the padding.
    """
    if vocab_size < 257:
        raise ValueError(f"`vocab_size` must be 257 or more (one entry a byte, and padding), got {vocab_size}.")
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>"],
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        padding_side="right",
        model_max_length=length,
        model_input_names=["input_ids"],  # SigLIP attends to the padding
    )


def read_rows(data: str, splits: Sequence[str]):
    """Rows of some splits of the pictures of a folder made by `emoji_data.py`.

    Raises:
        ValueError: when there is no such folder or split.
    """
    from datasets import concatenate_datasets, load_from_disk

    if not (Path(data) / "pictures").is_dir():
        raise ValueError(
            f"`data`: {data} holds no pictures; `python examples/emoji/emoji_data.py {data}` builds a set."
        )
    pictures = load_from_disk(str(Path(data) / "pictures"))
    if unknown := [split for split in splits if split not in pictures] or not splits:
        raise ValueError(f"`splits` must be some of {', '.join(pictures)}, got {unknown or 'none'}.")
    return concatenate_datasets([pictures[split] for split in splits])


def build_model(config: SiglipTrainingConfig, text_tokenizer: PreTrainedTokenizerFast) -> SiglipModel:
    """A new model. The logits' temperature starts at 10, as in SigLIP's paper (transformers: 1), and their bias by
    default at the paper's -10 (transformers: 0): nearly all pairs are negative, and so says the model from the
    start."""
    vision_config = SiglipVisionConfig(image_size=config.image_size, **config.vision_model)
    text_config = SiglipTextConfig(
        **config.text_model,
        vocab_size=len(text_tokenizer),
        max_position_embeddings=text_tokenizer.model_max_length,
        projection_size=vision_config.hidden_size,
        pad_token_id=text_tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = SiglipModel(SiglipConfig(vision_config=vision_config, text_config=text_config))
    model.set_attn_implementation(config.attn_implementation)
    torch.nn.init.constant_(model.logit_scale, math.log(10))
    torch.nn.init.constant_(model.logit_bias, config.logit_bias)
    return model


def make_arguments(config: SiglipTrainingConfig, folder: Path) -> TrainingArguments:
    """What Trainer is told.

    Raises:
        ValueError: when the processes can't share a batch evenly.
    """
    num_processes = PartialState().num_processes
    if config.batch_size % num_processes:
        raise ValueError(f"`batch_size`={config.batch_size} must be a multiple of the {num_processes} processes.")
    precision = choose_precision(config.mixed_precision)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.max_train_steps,
        per_device_train_batch_size=config.batch_size // num_processes,
        train_sampling_strategy="sequential",  # item n of the data is the n-th pair already
        remove_unused_columns=False,
        average_tokens_across_devices=False,  # the loss is a mean, not a sum over tokens
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.lr_warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta2=0.95,
        use_cpu=not torch.accelerator.is_available(),  # bf16 must be told
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        dataloader_pin_memory=torch.accelerator.is_available(),
        seed=config.seed,
        logging_steps=config.logging_steps,
        save_steps=config.checkpointing_steps,
        save_total_limit=1,
        report_to=config.report_to,
    )
    arguments.mixed_precision = precision  # it would give way to ACCELERATE_MIXED_PRECISION
    return arguments


def check_settings(config: SiglipTrainingConfig, checkpoint: str | None) -> None:
    """
    Raises:
        ValueError: naming the fields that have changed since the checkpoint and can't.
    """
    if checkpoint is not None and (file := Path(checkpoint) / SETTINGS).exists():
        check_resume(json.loads(file.read_text(encoding="utf-8")), config, Path(checkpoint))


class RunCallback(TrainerCallback):
    """Ends the training after the step in which `stop` was set on any process, with a checkpoint; keeps the settings
    beside each checkpoint; and logs and saves as often as the config says, where Trainer goes on as the checkpoint
    says."""

    def __init__(self, stop: threading.Event, config: SiglipTrainingConfig):
        self.stop, self.config = stop, config

    def on_train_begin(self, args, state, control, **kwargs):
        state.compute_steps(args, args.max_steps)

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / SETTINGS
            file.write_text(json.dumps(saved_settings(self.config)), encoding="utf-8")

    def on_step_end(self, args, state, control, **kwargs):
        if any_process(self.stop.is_set(), PartialState()):
            self.stop.set()
            control.should_save = control.should_training_stop = True
        return control


def save(folder: Path, model: SiglipModel, text_tokenizer: PreTrainedTokenizerFast) -> None:
    """Model, text tokenizer and image processor, for `Teacher.from_pretrained` and the Auto classes."""
    size = model.config.vision_config.image_size
    model.save_pretrained(folder)
    text_tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)


def zero_shot(teacher: Teacher, data: str, split: str) -> dict[str, float]:
    """How often the text nearest to a picture, among all labels of its split, is its own label: `top1` over `pictures`
    pictures, with `labels` labels and thus the `chance` of a blind choice."""
    rows = read_rows(data, [split])
    labels = sorted(set(rows["label"]))
    size = teacher.image_size[0]
    images = [
        teacher.embed_pictures(torch.stack([read_pixels(image, size) for image in batch["image"]]))
        for batch in rows.select_columns(["image"]).iter(batch_size=64)
    ]
    scores = cosines(torch.cat(images).numpy(), teacher.embed_texts(labels).numpy())
    outcomes = top_k_outcomes(scores, [labels.index(label) for label in rows["label"]])
    return {
        "top1": float(outcomes.mean()),
        "pictures": len(outcomes),
        "labels": len(labels),
        "chance": 1 / len(labels),
    }


def finished(config: SiglipTrainingConfig) -> Path | None:
    """The model's folder when this training was finished before."""
    folder = Path(config.output_dir) / "model"
    return folder if folder.is_dir() else None


def train(config: SiglipTrainingConfig) -> Path:
    """Trains, from the last checkpoint if there is one, and returns the folder of model, text tokenizer and image
    processor.

    Raises:
        Stopped: after the step in which SIGTERM or Ctrl-C came; its checkpoint is kept.
        ValueError: for data that are not there, or a training that is finished.
    """
    stop = threading.Event()
    with stops_after_step(stop):
        folder = train_until(stop, config)
    if stop.is_set():
        raise Stopped("the training had reached its end, and is finished")
    return folder


def train_until(stop: threading.Event, config: SiglipTrainingConfig) -> Path:
    """[`train`], until `stop` is set."""
    check_unfinished(folder := Path(config.output_dir), "model")
    checkpoint = get_last_checkpoint(folder) if folder.is_dir() else None
    check_settings(config, checkpoint)
    rows = read_rows(config.data, config.splits)
    make_output_folder(folder, "model")
    pairs = EmojiPairs(
        rows,
        config.max_train_steps * config.batch_size,
        config.image_size,
        config.seed,
        config.crop_probability,
        config.crop_scale,
        config.group_size,
        config.text_weights,
    )
    text_tokenizer = train_text_tokenizer(pairs.all_texts(), config.vocab_size, config.text_length)
    with seeded_weights(config.seed):  # Trainer seeds torch's global generator; here that ends with the block
        model = build_model(config, text_tokenizer)
        trainer = Trainer(
            model,
            make_arguments(config, folder),
            data_collator=PairCollator(text_tokenizer),
            train_dataset=pairs,
            compute_loss_func=sigmoid_loss,
            callbacks=[RunCallback(stop, config)],
        )
        trainer.train(resume_from_checkpoint=checkpoint)
    if stop.is_set() and (done := trainer.state.global_step) < config.max_train_steps:
        raise stopped_after(done)
    if trainer.is_world_process_zero():
        save_whole(lambda path: save(path, model, text_tokenizer), folder / "model")
        if config.validation_split:
            result = zero_shot(Teacher.from_pretrained(folder / "model"), config.data, config.validation_split)
            (folder / "zero_shot.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    trainer.accelerator.wait_for_everyone()
    return folder / "model"


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description="Train a small SigLIP, as YAML files say. What is finished is left as it is, and what was "
        "interrupted goes on where it stopped.",
        epilog="fields of a config:\n" + "\n".join(explain(SiglipTrainingConfig)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, nargs="+", metavar="FILE", help="YAML files, one after the other")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of all of them; repeat"
    )
    args = parser.parse_args(arguments)
    try:
        overrides = {field: yaml.safe_load(value) for field, _, value in (part.partition("=") for part in args.set)}
        configs = [read_config(SiglipTrainingConfig, path, **overrides) for path in args.config]
        for config in configs:
            print(finished(config) or train(config))
    except (ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    except Stopped as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(EXIT_CODE)
    except KeyboardInterrupt:
        sys.exit(f"{parser.prog}: interrupted")


if __name__ == "__main__":
    main()
