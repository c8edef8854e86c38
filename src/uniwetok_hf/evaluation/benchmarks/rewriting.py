# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Prompts that a chat model has rewritten before they are drawn. Scores of them are another benchmark, which results
name."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.request import Request, urlopen

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ...files import read_json, whole_file
from ...provenance import short_name
from ..processes import ALONE, Processes
from .files import BenchmarkFile


REWRITTEN_FILE = "rewritten_prompts.json"
MAX_NEW_TOKENS = 256
INSTRUCTIONS = (
    "Rewrite the description of a picture for a text-to-image model. Keep every object, and its number, colour and "
    "place; say what they look like, how they are arranged, the background and the light. Add no further object. "
    "Answer with the description alone, one paragraph in English."
)


def load_rewriter(source: str, device: str = "cpu") -> tuple[str, Callable[[str], str]]:
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
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"`rewriter` {url} has no model that answers: {error}.") from error

    def rewrite(prompt: str) -> str:
        content = {"model": model, "messages": _messages(prompt), "max_tokens": MAX_NEW_TOKENS, "temperature": 0}
        try:
            return ask("chat/completions", content)["choices"][0]["message"]["content"] or ""
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ValueError(f"`rewriter` {url} gave no answer to {prompt!r}: {error}.") from error

    return model, rewrite


def _of_folder(source: str, device: str) -> tuple[str, Callable[[str], str]]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto").to(device).eval()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"`rewriter` {source} can't be loaded: {error}") from error
    if tokenizer.chat_template is None:
        raise ValueError(f"`rewriter` {source} has no chat template: give a model that was trained to answer.")

    @torch.no_grad()
    def rewrite(prompt: str) -> str:
        inputs = tokenizer.apply_chat_template(
            _messages(prompt), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(device)
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return short_name(source), rewrite


def _messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": prompt}]


def rewrite_prompts(
    files: Sequence[BenchmarkFile],
    out: Path,
    source: str,
    load: Callable[[], tuple[str, Callable[[str], str]]],
    processes: Processes = ALONE,
) -> list[BenchmarkFile]:
    """
    The files with rewritten prompts. They are saved in `out` and read from there by a run that goes on.

    Args:
        source: the rewriter's name.
        load: gives the rewriter, when it is needed.
        processes: those that share the prompts.

    Raises:
        ValueError: when `out` was begun with another rewriter or other prompts, or a prompt was answered by nothing.
    """
    path, prompts = out / REWRITTEN_FILE, list(dict.fromkeys(file.prompt for file in files))
    if not any(processes.gather(path.is_file())):
        model, rewrite = load()

        def answer(part: list[str]) -> list[str]:
            return [" ".join(rewrite(prompt).split()) for prompt in part]

        rewritten = dict(zip(prompts, processes.map(answer, prompts, 1, "rewriting"), strict=True))
        if empty := [prompt for prompt, text in rewritten.items() if not text]:
            raise ValueError(f"`rewriter` {source} answered {empty[0]!r} with nothing.")
        if processes.is_main:
            out.mkdir(parents=True, exist_ok=True)
            content = {"rewriter": source, "model": model, "instructions": INSTRUCTIONS, "prompts": rewritten}
            with whole_file(path, is_shared=True) as temporary:
                temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        processes.gather(None)  # the file is there
    saved = read_json(path)
    if saved.get("rewriter") != source:
        raise ValueError(f"`rewriter`: {out} was begun with {saved.get('rewriter')}; name another folder.")
    return with_prompts(files, saved["prompts"], path)


def with_prompts(files: Sequence[BenchmarkFile], prompts: Mapping[str, str], path: Path) -> list[BenchmarkFile]:
    """
    Raises:
        ValueError: naming `path`, when a prompt of the files is not among those that were rewritten.
    """
    if missing := [file.prompt for file in files if file.prompt not in prompts]:
        raise ValueError(f"{path} lacks {missing[0]!r}: it is of other prompts.")
    return [replace(file, prompt=prompts[file.prompt]) for file in files]
