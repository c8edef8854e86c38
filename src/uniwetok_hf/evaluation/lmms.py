# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Our language models in lmms-eval (0.7):

    lmms_eval --model uniwetok --model_args pretrained=runs/mllm/pipeline --tasks mme,pope --batch_size 16

lmms-eval finds [`manifest`] by the entry point of this package, and loads this module only then.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from PIL import Image
from tqdm.auto import tqdm

from ..data.images import read_image
from ..data.samples import stream_seed
from ..embedded import DEFAULT, embedded_names, embedded_path
from ..pipelines import UniWeTokEditPipeline, UniWeTokPipeline
from ..pipelines.writing import generate_text
from .rows import batched


OUTPUTS = ("text", "image")
MAX_NEW_TOKENS = 1024  # where a task says nothing


def manifest() -> ModelManifest:
    """What lmms-eval is told of this package."""
    return ModelManifest("uniwetok", chat_class_path=f"{__name__}.UniWeTokLmms")


class UniWeTokLmms(lmms):
    """
    A pipeline of this package as a chat model of lmms-eval.

    Args:
        pretrained: pipeline folder, Hub id, or the name of an embedded model.
        device: where it computes; under `accelerate launch` with several GPUs, "cuda" is that of the process.
        dtype: of the weights, by default float32 on a CPU and bfloat16 elsewhere.
        batch_size: requests answered at once.
        output: "text" answers questions; "image" generates a picture for each request, or edits the picture in it, as
            tasks that ask for pictures want it: the answer is a JSON object of `text` and the paths of `images`.
        output_dir: where generated pictures are saved.
        seed: of generated pictures; that of request k is made of this and of its number.

    Raises:
        ValueError: for an unknown `output`.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = DEFAULT,
        device: str = "cuda" if torch.cuda.is_available() else "cpu",
        dtype: str | None = None,
        batch_size: int | str = 1,
        output: str = "text",
        output_dir: str = "results/lmms",
        seed: int = 0,
    ):
        from accelerate import PartialState

        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f"`output` must be one of {list(OUTPUTS)}, got {output!r}.")
        state = PartialState()
        self._rank, self._world_size = state.process_index, state.num_processes
        self.device = torch.device(device)
        if self.device.type == "cuda" and self._world_size > 1:
            self.device = state.device
        name = dtype or ("float32" if self.device.type == "cpu" else "bfloat16")
        folder = embedded_path(pretrained) if pretrained in embedded_names() else pretrained
        self.pipe = UniWeTokPipeline.from_pretrained(folder, dtype=getattr(torch, name)).to(self.device)
        self.pipe.set_progress_bar_config(disable=True)
        self.batch_size, self.output, self.output_dir, self.seed = int(batch_size), output, Path(output_dir), int(seed)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered: tasks of the chat kind generate."""
        raise NotImplementedError("uniwetok answers by generating text; tasks by log-likelihood are not supported.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered."""
        raise NotImplementedError("uniwetok does not support tasks of several rounds.")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """An answer to each request, in their order."""
        answers: dict[int, str] = {}
        by_options: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            by_options.setdefault(json.dumps(request.args[2], sort_keys=True, default=str), []).append(index)
        with tqdm(total=len(requests), desc="answering", disable=self._rank != 0) as bar:
            for indices in by_options.values():
                for part in batched(indices, self.batch_size):
                    chats = [self._messages(requests[index]) for index in part]
                    options = requests[part[0]].args[2]
                    found = self._pictures(chats, part) if self.output == "image" else self._answer(chats, options)
                    answers |= dict(zip(part, found, strict=True))
                    bar.update(len(part))
        return [answers[index] for index in range(len(requests))]

    def _messages(self, request: Instance) -> ChatMessages:
        _, doc_to_messages, _, doc_id, task, split = request.args
        return ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))

    def _answer(self, chats: Sequence[ChatMessages], options: dict) -> list[str]:
        """Texts, greedily, each up to the first of the strings in `until`."""
        conversations, images = [], []
        for chat in chats:
            conversations.append([_message(message) for message in chat.messages])
            images += [read_image(image) for image in chat.extract_media()[0]]
        processor = self.pipe.processor
        texts = processor.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False)
        length = int(options.get("max_new_tokens") or MAX_NEW_TOKENS)
        most = getattr(self.pipe.mllm.config.text_config, "max_position_embeddings", None)
        length = length if most is None else min(length, most // 4)  # tasks ask for more than small models have
        answers = generate_text(self.pipe.mllm, processor, texts, images, length)
        until = options.get("until") or []
        ends = [until] if isinstance(until, str) else until
        return [_cut(answer, ends) for answer in answers]

    def _pictures(self, chats: Sequence[ChatMessages], numbers: Sequence[int]) -> list[str]:
        """Pictures of the texts, or edits of the last picture where a request has one."""
        edit, results = UniWeTokEditPipeline.from_pipe(self.pipe), []
        edit.set_progress_bar_config(disable=True)
        for chat, number in zip(chats, numbers, strict=True):
            prompt = " ".join(
                content.text for message in chat.messages for content in message.content if content.type == "text"
            ).strip()
            images = [read_image(image) for image in chat.extract_media()[0]]
            own = self._rank + number * self._world_size
            call = {"prompt": prompt, "generator": [torch.Generator().manual_seed(stream_seed(self.seed, own))]}
            picture = (edit(image=images[-1], **call) if images else self.pipe(**call)).images[0]
            results.append(json.dumps({"text": "", "images": [str(self._save(picture, own))]}))
        return results

    def _save(self, picture: Image.Image, number: int) -> Path:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        path = self.output_dir.resolve() / f"{number:06d}.png"
        picture.save(path)
        return path


def _message(message) -> dict:
    """One message as our chat template takes it. Videos and sound have no place in it."""
    content: list[dict] = []
    for part in message.content:
        if part.type not in ("text", "image"):
            raise ValueError(f"uniwetok reads text and images, this task shows {part.type}.")
        content.append({"type": "text", "text": part.text} if part.type == "text" else {"type": "image"})
    return {"role": message.role, "content": content}


def _cut(text: str, ends: Sequence[str]) -> str:
    """`text` up to the first of `ends`."""
    for end in ends:
        text = text.split(end, 1)[0] if end.strip() else text  # answers are one line: blank ends are no end
    return text.strip()
