# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Prompts that a chat model has rewritten before pictures are generated of them. Scores of them are another benchmark,
which results name."""

import json
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from ...files import read_json, writing
from ...provenance import short_name
from ...signals import Stopped
from ..processes import ALONE, Processes, stopped_alike
from ..runs import save_json
from .base import field_of
from .files import BenchmarkFile


REWRITTEN_FILE = "rewritten_prompts.json"
PARTS = "rewritten_parts"  # an answer each, until all are there
MAX_NEW_TOKENS = 1024  # thoughts of models that think first included
TRIES = 3  # of a server, for each prompt
FAILURES = (OSError, ValueError, LookupError, TypeError, AttributeError, HTTPException)
INSTRUCTIONS = (
    "Rewrite the description of a picture for a text-to-image model. Keep every object, and its number, colour and "
    "place; say what they look like, how they are arranged, the background and the light. Add no further object. "
    "Answer with the description alone, one paragraph in English."
)


def load_rewriter(source: str, device: torch.device | str = "cpu") -> tuple[str, Callable[[str], str]]:
    """
    A chat model that rewrites a prompt by `INSTRUCTIONS`, with its most likely answer.

    Args:
        source: URL of an OpenAI-compatible server, such as `http://localhost:8000/v1`, whose first model answers (its
            key, if it wants one, is `OPENAI_API_KEY` of the environment); or the folder or Hub name of a language
            model with a chat template.
        device: where a model of transformers computes.

    Returns:
        The name of the model, and what rewrites a prompt.

    Raises:
        ValueError: when there is no such model.
    """
    return _of_server(source) if source.startswith(("http://", "https://")) else _of_folder(source, device)


def _of_server(url: str) -> tuple[str, Callable[[str], str]]:
    def ask(path: str, content: dict | None = None) -> dict:
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        data = None if content is None else json.dumps(content).encode()
        with urlopen(Request(f"{url.rstrip('/')}/{path}", data, headers), timeout=300) as answer:
            return json.load(answer)

    try:
        model = ask("models")["data"][0]["id"]
    except FAILURES as error:
        raise ValueError(f"`rewriter` {url} has no model that answers: {error}.") from error

    def rewrite(prompt: str) -> str:
        content = {"model": model, "messages": _messages(prompt), "max_tokens": MAX_NEW_TOKENS, "temperature": 0}
        for tries_left in reversed(range(TRIES)):
            try:
                choice = ask("chat/completions", content)["choices"][0]
                return checked_answer(choice["message"]["content"], prompt, choice.get("finish_reason") == "length")
            except FAILURES as error:
                if not tries_left:
                    raise ValueError(f"`rewriter` {url} gave no answer to {prompt!r}: {error}.") from error
        raise AssertionError

    return model, rewrite


def _of_folder(source: str, device: torch.device | str) -> tuple[str, Callable[[str], str]]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model, report = AutoModelForCausalLM.from_pretrained(source, dtype="auto", output_loading_info=True)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"`rewriter` {source} can't be loaded: {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"`rewriter` {source} lacks {len(missing)} weights, the first is {missing[0]}.")
    if tokenizer.chat_template is None:
        raise ValueError(f"`rewriter` {source} has no chat template: give a model that was trained to answer.")
    model = model.to(device).eval()

    @torch.no_grad()
    def rewrite(prompt: str) -> str:
        inputs = tokenizer.apply_chat_template(
            _messages(prompt), add_generation_prompt=True, return_dict=True, return_tensors="pt", enable_thinking=False
        ).to(device)
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        answer = output[0, inputs["input_ids"].shape[1] :]
        ends = model.generation_config.eos_token_id
        is_cut = len(answer) == MAX_NEW_TOKENS and int(answer[-1]) not in (ends if isinstance(ends, list) else [ends])
        return checked_answer(tokenizer.decode(answer, skip_special_tokens=True), prompt, is_cut)

    return short_name(source), rewrite


def checked_answer(answer: object, prompt: str, is_cut: bool) -> str:
    """An answer in one line, without the thoughts before it.

    Raises:
        ValueError: when it is cut off, or there is none.
    """
    text = re.sub(r"<think>.*?</think>", "", answer, flags=re.DOTALL) if isinstance(answer, str) else ""
    text = " ".join(text.split())
    if is_cut or "<think>" in text:
        raise ValueError(f"`rewriter`: the answer to {prompt!r} is longer than {MAX_NEW_TOKENS} tokens.")
    if not text:
        raise ValueError(f"`rewriter` answered {prompt!r} with nothing.")
    return text


def _messages(prompt: str) -> list[dict[str, str]]:
    """In one turn: some models know no other role."""
    return [{"role": "user", "content": f"{INSTRUCTIONS}\n\n{prompt}"}]


def rewrite_prompts(
    files: Sequence[BenchmarkFile],
    out: Path,
    source: str,
    check: Callable[[list[str]], object],
    begin: Callable[[], object],
    device: torch.device | str = "cpu",
    processes: Processes = ALONE,
    stop: threading.Event | None = None,
) -> list[BenchmarkFile]:
    """
    The files with rewritten prompts. Every answer is saved in `out` as it comes; a run that goes on reads them from
    there. A prompt whose answer `check` refuses stays as it is, with a warning.

    Args:
        source, device: of [`load_rewriter`].
        check: raises a `ValueError` for prompts that the pipeline can't read.
        begin: called before something is saved in `out`, which it makes.
        processes: those that share the prompts.
        stop: when it is set, the run ends after the current prompt.

    Raises:
        ValueError: when `out` has prompts of another rewriter, or other ones, or a prompt was not answered.
        Stopped: when `stop` was set.
        OSError: when `out` can't be written.
    """
    path, prompts = out / REWRITTEN_FILE, list(dict.fromkeys(file.prompt for file in files))
    if any(processes.gather(path.is_file())):
        saved = read_json(path)
        if field_of(saved, "rewriter", str, str(path)) != source:
            raise ValueError(f"`rewriter`: {out} was begun with {saved['rewriter']}; name another folder.")
        files = with_prompts(files, saved, path)
        check([file.prompt for file in files])
        return files
    model, rewrite = load_rewriter(source, device)
    found = {}
    with processes.bar(len(prompts), "rewriting") as bar:
        for number, prompt in processes.own(prompts):
            part = out / PARTS / f"{number:06d}.json"
            answer = _saved_answer(part, model, prompt)
            if answer is None:
                if stop is not None and stop.is_set():
                    raise Stopped(
                        f"stopped before prompt {number} is rewritten; the same command continues from there"
                    )
                answer = _readable(rewrite(prompt), prompt, check)
                begin()
                with writing(part):
                    part.parent.mkdir(parents=True, exist_ok=True)
                save_json(part, {"model": model, "prompt": prompt, "rewritten": answer})
            found[number] = answer
            bar.update()
    with stopped_alike(stop):
        answers = processes.merge(found)
    rewritten = dict(zip(prompts, answers, strict=True))
    if not path.is_file():
        save_json(path, {"rewriter": source, "model": model, "instructions": INSTRUCTIONS, "prompts": rewritten})
    shutil.rmtree(out / PARTS, ignore_errors=True)
    return [replace(file, prompt=rewritten[file.prompt]) for file in files]


def _saved_answer(part: Path, model: str, prompt: str) -> str | None:
    """What a run before has saved of a prompt; None when it did not, or of another model."""
    saved = read_json(part) if part.is_file() else {}
    return saved.get("rewritten") if (saved.get("model"), saved.get("prompt")) == (model, prompt) else None


def _readable(answer: str, prompt: str, check: Callable[[list[str]], object]) -> str:
    """The answer, or the prompt where `check` refuses the answer: the rewriter would give the same one again."""
    try:
        check([answer])
    except ValueError as error:
        warnings.warn(f"`rewriter`: the answer to {prompt!r} can't be used, the prompt stays as it is: {error}")
        return prompt
    return answer


def name_of_rewriter(out: Path) -> str:
    """The model that rewrote the prompts of a run.

    Raises:
        ValueError: when they are not there.
    """
    path = out / REWRITTEN_FILE
    if not path.is_file():
        raise ValueError(f"{path}, which holds the rewritten prompts, is not there.")
    return field_of(read_json(path), "model", str, str(path))


def with_prompts(files: Sequence[BenchmarkFile], rewritten: dict, path: Path) -> list[BenchmarkFile]:
    """
    Raises:
        ValueError: naming `path`, when a prompt of the files is not among those that were rewritten.
    """
    prompts = field_of(rewritten, "prompts", dict, str(path))
    if missing := [file.prompt for file in files if not isinstance(prompts.get(file.prompt), str)]:
        raise ValueError(f"{path} lacks {missing[0]!r}: it is of other prompts.")
    return [replace(file, prompt=prompts[file.prompt]) for file in files]
