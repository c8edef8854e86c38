# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Malformed inputs of `faults.py`: what is damaged, through which door it comes, and whether the answer is right."""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mutations
from faults_kills import step_of
from faults_materials import Materials
from faults_trials import (
    CRASHED,
    Ended,
    Kind,
    Wrong,
    check_one_line,
    command,
    contents,
    half_written,
    in_child,
    limit_memory,
)


SPECIAL = ("<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|vision_start|>", "<|res_1|>", "<|endoftext|>")
PIECES = (
    *SPECIAL, "\ud83d", "\udce9", "\0", "\n", " ", "\t", "\u202e", "\ufeff", "e\u0301", "\U0001f468\u200d\U0001f469",
    "a cat", "-", "--model", "{image}", "%s", "..", "/", "\\", "'", '"', "<image>", "名前", "x" * 3000, "\x1b[31m", "",
)  # fmt: skip


@dataclass
class Damage:
    """One damaged input: what was done to it, the words of which a message must have one, and doors to try it at:
    commands as lists of words, and functions. The current folder of each is empty but for the directory `out`."""

    what: str
    names: list[str]
    doors: list[list[object] | Callable[[], object]]
    is_training: bool = False


class Inputs:
    """The kinds of this part; 500 trials in all."""

    def __init__(self, materials: Materials):
        self.materials = materials

    def kinds(self) -> list[Kind]:
        makers = {
            "pictures": (self.picture, 90),
            "codes": (self.codes, 50),
            "texts": (self.text, 60),
            "conversations": (self.conversation, 50),
            "configs": (self.config, 80),
            "checkpoints": (self.checkpoint, 80),
            "encoded data": (self.encoded, 30),
            "archives": (self.archive, 30),
            "states of trainings": (self.state, 30),
        }
        return [Kind("inputs", name, range(count), self.trial(name, make)) for name, (make, count) in makers.items()]

    def trial(self, name: str, make: Callable[[random.Random, Path], Damage]) -> Callable[[int, Path], None]:
        def try_one(number: int, folder: Path) -> None:
            chance = random.Random(f"{name} {number}")
            (folder / "in").mkdir(parents=True)
            (folder / "work" / "out").mkdir(parents=True)
            damage = make(chance, folder / "in")
            door = chance.choice(damage.doors)
            words = [str(word) for word in door] if isinstance(door, list) else None
            title = f"{damage.what}, {' '.join(words[:2]) if words else door.__name__}"

            def job() -> object:
                os.chdir(folder / "work")
                limit_memory()
                return command(*words)() if words else of_python(door)

            ended = in_child(job, folder, 180, stop_training(folder / "work") if damage.is_training else None)
            try:
                check(ended, damage, folder)
            except Wrong as wrong:
                raise Wrong(f"{title}: {str(wrong).replace(str(folder), '')}") from None

        return try_one

    def picture(self, chance: random.Random, place: Path) -> Damage:
        from nasty_pictures import pictures

        name, content = chance.choice(sorted(pictures().items()))
        if content.startswith(b"\x89PNG") and len(content) < 2**20 and chance.random() < 0.4:
            what, content = chance.choice(sorted(mutations.damaged_png(content).items()))
        else:
            what, content = damaged(chance, content)
        path = place / f"picture.{chance.choice(('png', 'jpg', 'webp', 'dat'))}"
        path.write_bytes(content)
        vision, model = ("--model", self.materials.vision), ("--model", self.materials.pipeline)

        def pipeline():
            self.pipe().encode_image(chance.choice((str(path), path.read_bytes())))

        def processor():
            self.pipe().processor.image_processor(content)

        def conversation():
            from uniwetok_hf import UniWeTokConversation

            UniWeTokConversation(self.pipe()).say("what?", images=str(path), max_new_tokens=1)

        doors = [
            ["encode", path, *vision, "--output", "out/a.safetensors"],
            ["reconstruct", path, *vision, "--output", "out"],
            ["edit", path, "a cat", *model, "--output", "out"],
            ["describe", path, *model, "--max-new-tokens", "2"],
            *(pipeline, processor, conversation),
        ]
        return Damage(f"{name}: {what}", [path.name, "`image", "given bytes"], doors)

    def codes(self, chance: random.Random, place: Path) -> Damage:
        path = place / "codes.safetensors"
        what, content = damaged_safetensors(chance, self.materials.codes.read_bytes(), "uniwetok")
        path.write_bytes(content)

        def load():
            from uniwetok_hf import load_codes

            load_codes(path)

        decode = ["decode", path, "--model", self.materials.vision, "--output", "out"]
        return Damage(what, [path.name], [decode, decode, load])

    def text(self, chance: random.Random, place: Path) -> Damage:
        words = "".join(chance.choice(PIECES) for _ in range(chance.randrange(1, 5)))
        picture, model = self.materials.picture, ("--model", self.materials.pipeline)

        def pipeline():
            self.pipe()(words, output_type="latent")

        def conversation():
            from uniwetok_hf import UniWeTokConversation

            UniWeTokConversation(self.pipe()).say(words, max_new_tokens=1)

        def processor():
            self.pipe().processor(text=[words])

        doors: list = [pipeline, conversation, processor]
        if "\0" not in words:  # which no command line can hold
            doors += [
                ["generate", "--output", "out", *model, "--", words],
                ["edit", "--output", "out", *model, "--", picture, words],
                ["describe", picture, f"--question={words}", "--max-new-tokens", "2", *model],
            ]
        return Damage(f"text {words[:60]!r}", [], doors)

    def conversation(self, chance: random.Random, place: Path) -> Damage:
        import numpy as np

        picture = np.zeros((64, 64, 3), np.uint8)
        words = chance.choice(("what?", *PIECES))
        user = [{"type": "image", "image": picture}, {"type": "text", "text": words}]
        talk = [{"role": "user", "content": user}, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]
        what = "nothing"
        for _ in range(chance.randrange(1, 3)):
            what, talk = damaged_tree(chance, talk)

        def template():
            self.pipe().processor.apply_chat_template(talk, tokenize=True, return_dict=True)

        def text_template():
            self.pipe().processor.apply_chat_template(talk, add_generation_prompt=True)

        def saved():
            from uniwetok_hf import UniWeTokConversation

            pipe, folder = self.pipe(), Path("out") / "talk"
            UniWeTokConversation(pipe).save(folder)
            record = json.loads((folder / "conversation.json").read_text())
            path = folder / "conversation.json"
            path.write_text(json.dumps(record | {"messages": talk}, default=str))
            try:
                UniWeTokConversation.load(folder, pipe).say("x", max_new_tokens=1)
            finally:
                shutil.rmtree(folder)

        return Damage(f"conversation, {what}, {words[:30]!r}", [], [template, text_template, saved])

    def config(self, chance: random.Random, place: Path) -> Damage:
        import yaml

        trainer = chance.choice(("tokenizer", "mllm"))
        fields = self.materials.fields(trainer) | {"output_dir": "out/run"}
        path = place / "config.yaml"
        if chance.random() < 0.25:
            what, content = damaged(chance, yaml.safe_dump(fields).encode())
        else:
            what, fields = damaged_tree(chance, fields)
            content = yaml.safe_dump(fields).encode()
        path.write_bytes(content)
        return Damage(f"{trainer}, {what}", [path.name, "`"], [["train", trainer, "--config", path]], True)

    def checkpoint(self, chance: random.Random, place: Path) -> Damage:
        is_pipeline = chance.random() < 0.7
        folder = place / "model"
        shutil.copytree(self.materials.pipeline if is_pipeline else self.materials.vision, folder)
        what, names = damaged_file(chance, folder)
        picture, model = self.materials.picture, ("--model", folder)
        doors: list = [["reconstruct", picture, *model, "--output", "out"]]
        if is_pipeline:
            doors += [
                ["generate", "a", *model, "--output", "out"],
                ["describe", picture, *model, "--max-new-tokens", "2"],
                ["edit", picture, "a", *model, "--output", "out"],
            ]
        return Damage(what, [*names, "model"], doors)

    def encoded(self, chance: random.Random, place: Path) -> Damage:
        fields = self.materials.fields("mllm")
        source = chance.randrange(len(fields["data"]))
        folder = place / "encoded"
        shutil.copytree(fields["data"][source]["path"], folder)
        what, names = damaged_file(chance, folder)
        config = self.train_on("mllm", place, {**fields["data"][source], "path": str(folder)}, validation_data=[])

        def read():
            from uniwetok_hf.data.encoded import cell_codes, open_encoded, read_encoding

            encoding, rows = read_encoding(folder), open_encoded(folder)
            for column in encoding.picture_columns:
                cell = rows[0][column]
                cell_codes(cell[0] if isinstance(cell[0], list) else cell, 0, encoding.num_bits)

        return Damage(what, [*names, "encoded"], [["train", "mllm", "--config", config], read], True)

    def train_on(self, trainer: str, place: Path, source: dict, **more) -> Path:
        """A config of a training of two steps on this source."""
        from tiny_training import write

        return write(place, self.materials.fields(trainer) | more, data=[source], output_dir="out/run")

    def archive(self, chance: random.Random, place: Path) -> Damage:
        path = place / "shard.tar"
        what, content = damaged(chance, self.materials.archive.read_bytes())
        path.write_bytes(content)
        vision = ("--model", self.materials.vision)
        config = self.train_on("tokenizer", place, {"path": str(path)})
        doors: list = [
            ["encode-dataset", path, "out/codes", "--size", "32", *vision],
            ["train", "tokenizer", "--config", config],
            ["evaluate", "reconstruction", path, "--split", "train", *vision, "--output", "out", "--count", "2"],
        ]
        return Damage(what, [path.name], doors, True)

    def state(self, chance: random.Random, place: Path) -> Damage:
        trainer = chance.choice(("tokenizer", "mllm"))
        begun = self.materials.runs[trainer]
        run = place.parent / "work" / "out" / "run"
        shutil.copytree(begun / "run", run)
        part = run / chance.choice(("checkpoints/step-000003", "checkpoints/step-000003", "architecture"))
        what, names = damaged_file(chance, part)
        config = self.materials.training(trainer, place)
        text = config.read_text().replace(str(place / "run"), "out/run")
        config.write_text(text)
        doors = [["train", trainer, "--config", config], ["export", "out/run", "out/exported"]]
        return Damage(f"{trainer}, {what}", [*names, "step-", "run"], doors, True)

    def pipe(self):
        """In a child: the pipeline of the materials."""
        from uniwetok_hf import UniWeTokPipeline

        pipe = UniWeTokPipeline.from_pretrained(self.materials.pipeline)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def of_python(door: Callable[[], object]) -> int:
    """A call of Python, whose errors are told as a command's where they are of the kinds that are right."""
    try:
        door()
    except (ValueError, OSError) as error:
        print(f"uniwetok: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def stop_training(work: Path) -> Callable[[int, float], None]:
    """Stops a training that has begun, since its config may ask for a million steps."""

    sent = []

    def watch(pid: int, seconds: float) -> None:
        with contextlib.suppress(OSError):  # of folders that vanish meanwhile
            if not sent and any((step_of(path.parent) or 0) > 3 for path in work.glob("**/log.jsonl")):
                os.kill(pid, signal.SIGTERM)
                sent.append(pid)

    return watch


def check(ended: Ended, damage: Damage, folder: Path) -> None:
    """
    Raises:
        Wrong: when a trial neither worked nor said in one line what is wrong, or left something half-written.
    """
    if ended.code == CRASHED:
        raise Wrong(f"raises {ended.last_words}")
    out = folder / "work"
    if ended.code not in (0, 75):
        line = check_one_line(ended)
        if damage.names and not any(name in line for name in damage.names):
            raise Wrong(f"does not say what is wrong: {line[:300]}")
        if not damage.is_training and (left := sorted(contents(out))):
            raise Wrong(f"leaves {', '.join(left)}: {line[:200]}")
    elif "Traceback" in ended.err:
        raise Wrong(f"works, with a traceback: {ended.last_words}")
    if rests := half_written(out):
        raise Wrong(f"half-written: {', '.join(rests)}")


def damaged(chance: random.Random, content: bytes) -> tuple[str, bytes]:
    """Any file with some bytes wrong, or whole parts."""
    return chance.choice(list(mutations.damaged_bytes(content, seed=chance.randrange(2**30)).items()))


def damaged_tree(chance: random.Random, tree):
    """A copy of nested lists and mappings in which one thing is missing, twice there, or another value."""
    if not isinstance(tree, (dict, list)) or not tree or chance.random() < 0.05:
        name = chance.choice(list(mutations.WRONG_VALUES))
        return f"is {name}", mutations.WRONG_VALUES[name]
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key = chance.choice(keys)
    deed = chance.choice(("missing", "twice", "deeper", "deeper", "deeper", "value", "value"))
    copied = dict(tree) if isinstance(tree, dict) else list(tree)
    if deed == "missing":
        del copied[key]
        return f"{key} missing", copied
    if deed == "twice":
        if isinstance(copied, list):
            copied.insert(key, copied[key])
        else:
            copied[f"{key}_"] = copied[key]
        return f"{key} twice", copied
    what, copied[key] = damaged_tree(chance, tree[key] if deed == "deeper" else None)
    return f"{key}.{what}", copied


def damaged_safetensors(chance: random.Random, content: bytes, record: str = "") -> tuple[str, bytes]:
    """A safetensors file with wrong bytes or tensors, or a wrong `record` of JSON in its metadata."""
    from safetensors import safe_open
    from safetensors.torch import load, save

    choice = chance.random()
    if choice < 0.4:
        return damaged(chance, content)
    if choice < 0.7 or not record:
        return chance.choice(list(mutations.damaged_tensors(content).items()))
    path = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(os.environ.get("TMPDIR", "/tmp"))
    path = path / f"faults-{os.getpid()}.safetensors"
    path.write_bytes(content)
    with safe_open(path, framework="pt") as file:
        values = json.loads(file.metadata()[record])
    path.unlink()
    what, values = damaged_tree(chance, values)
    return f"metadata: {what}", save(load(content), {record: json.dumps(values)})


def damaged_file(chance: random.Random, folder: Path) -> tuple[str, list[str]]:
    """Damages or removes one file of a folder, or exchanges two; returns what was done and the files' names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".md", ".jinja"))
    path, other = chance.choice(files), chance.choice(files)
    name = str(path.relative_to(folder))
    if chance.random() < 0.1:
        path.unlink()
        return f"{name} missing", [path.name]
    if chance.random() < 0.05:
        shutil.copyfile(other, path) if other != path else None
        return f"{name} is {other.name}", [path.name]
    if path.suffix == ".json" and chance.random() < 0.7:
        what, values = damaged_tree(chance, json.loads(path.read_text()))
        content = json.dumps(values).encode()
    elif path.suffix == ".json":
        what, content = chance.choice(list(mutations.damaged_json(path.read_bytes()).items()))
    elif path.suffix == ".safetensors":
        what, content = damaged_safetensors(chance, path.read_bytes())
    else:
        what, content = damaged(chance, path.read_bytes())
    path.write_bytes(content)
    return f"{name}: {what}", [path.name]
