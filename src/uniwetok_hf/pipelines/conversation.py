# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Conversations with pictures in and out: the unified model decides whether it answers with text or with a picture.

A turn is read and answered on top of the key-value cache of the turns before, so that it takes no longer than the same
job alone. When the model's weights, adapters, dtype or device changed since, the history is read anew. A generated
picture stays in the conversation as its codes; it is never decoded and encoded again.
"""

import functools
import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import BaseOutput
from PIL import Image
from transformers import DynamicCache

from ..data.images import read_image
from ..files import read_json, save_whole
from ..modeling.codes_uniwetok import load_codes, save_codes
from ..modeling.noise_uniwetok import Generators
from .pipeline_mixin import UniWeTokPipelineMixin
from .weights_state import state_digest


FORMAT, VERSION = "uniwetok-conversation", 1
MESSAGES_FILE, PICTURES_FILE = "conversation.json", "pictures.safetensors"
MAX_PICTURES = 4  # of one answer, should a model never end its turn


@dataclass
class UniWeTokReply(BaseOutput):
    """An answer: its `text` (empty where there is none) and its `images`, with their `codes`, float32 [bits, h, w] of
    {-1, +1}."""

    text: str = ""
    images: list[Image.Image] = field(default_factory=list)
    codes: list[torch.Tensor] = field(default_factory=list, repr=False)


def _one_turn(say: Callable) -> Callable:
    """`say` that waits for the turns that other threads say in the same conversation."""

    @functools.wraps(say)
    def take_turn(self, *args, **kwargs):
        with self._lock:
            if self._is_talking:
                raise RuntimeError("A callback of `say` can't say something in the same conversation.")
            self._is_talking = True
            try:
                return say(self, *args, **kwargs)
            finally:
                self._is_talking = False

    return take_turn


class UniWeTokConversation:
    r"""
    One conversation with the model of a pipeline. Several may share the pipeline, also in several threads; each has
    its own history and cache. Turns that several threads say in one conversation wait for each other.

    Args:
        pipe ([`UniWeTokPipeline`] or [`UniWeTokEditPipeline`]): its processor, model and scheduler are used, and its
            defaults for size, steps and guidance.

    Attributes:
        messages: the turns so far, `{"role", "content"}` as chat templates take them; `{"type": "image"}` items stand
            for `codes`, in order.
        codes: float32 [bits, h, w] of {-1, +1}, one for each picture so far, shown or generated.

    Example:

    ```python
    >>> talk = UniWeTokConversation(pipe)
    >>> apple = talk.say("draw a red apple").images[0]
    >>> talk.say("what is it?").text
    'red apple'
    >>> green = talk.say("make it green").images[0]
    >>> talk.save("apple-talk")
    ```
    """

    def __init__(self, pipe: UniWeTokPipelineMixin):
        self.pipe = pipe
        self.messages: list[dict] = []
        self.codes: list[torch.Tensor] = []
        self._lock, self._is_talking = threading.RLock(), False
        self._forget()

    @_one_turn
    @torch.no_grad()
    def say(
        self,
        text: str = "",
        images: Image.Image | str | os.PathLike | Sequence[Image.Image | str | os.PathLike] = (),
        generator: Generators = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        max_new_tokens: int = 64,
        callback_on_step_end: Callable[[UniWeTokPipelineMixin, int, int, dict], None] | None = None,
    ) -> UniWeTokReply:
        """Says something, shows pictures, or both, and returns the answer. Text is generated greedily.

        Args:
            text: what to say.
            images: pictures to show before the text, one or several, as PIL images or files.
            generator: source of the randomness of generated pictures.
            height, width: size in pixels of generated pictures; when not given that of the last picture in the
                conversation, or the pipeline's `default_size`. A conversation keeps codes only, so the size counts
                the padding of a picture that was shown; [`UniWeTokEditPipeline`] cuts it off.
            num_inference_steps, guidance_scale, callback_on_step_end: as in [`UniWeTokPipeline`]; setting
                `pipe._interrupt` in the callback ends the turn, and the conversation is as it was before it.
            max_new_tokens: longest answer in text tokens.

        Raises:
            ValueError: when nothing is said, the text holds special tokens or half of a surrogate pair, a picture
                can't be read, the conversation grows longer than the model's positions reach, or another argument is
                out of range.
            InterruptedError: when a callback interrupted the turn.
            RuntimeError: when a callback of a turn calls it.
        """
        pipe = self.pipe
        pipe.processor.check_words([text], "text")
        pipe.maybe_load_model()
        given: Any = [images] if isinstance(images, Image.Image | str | os.PathLike | bytes) else images
        if not isinstance(given, Sequence):
            raise ValueError(f"`images` must be a picture, a path, or a list of them, got {type(images).__name__}.")
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` must be a whole number of 1 or more, got {max_new_tokens!r}.")
        shown = [image.codes for image in pipe.encode_image([read_image(image) for image in given])]
        content = [{"type": "image"}] * len(shown) + ([{"type": "text", "text": text}] if text.strip() else [])
        if not content:
            raise ValueError("`text` is empty and there are no `images`: say or show something.")
        size = self._next_size(height, width, [*self.codes, *shown])
        num_inference_steps = pipe.value_or_default("num_inference_steps", num_inference_steps)
        guidance_scale = pipe.value_or_default("guidance_scale", guidance_scale)
        pipe.check_settings(num_inference_steps, guidance_scale, generator, num_images=1)
        settings = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "generator": generator,
            "callback_on_step_end": callback_on_step_end,
        }
        if (weights := state_digest(pipe.mllm)) != self._weights:
            self._forget()
            self._weights = weights
        before = len(self.messages), len(self.codes)
        self.messages.append({"role": "user", "content": content})
        self.codes += shown
        try:
            answer, generated = self._answer(size, max_new_tokens, settings)
            pictures = [pipe.decode(codes[None], generator, "pil")[0] for codes in generated]
        except BaseException:
            del self.messages[before[0] :], self.codes[before[1] :]
            self._forget()
            raise
        self.messages.append({"role": "assistant", "content": answer})
        self.codes += generated
        reply = " ".join(item["text"] for item in answer if item["type"] == "text")
        pipe.maybe_free_model_hooks()
        return UniWeTokReply(text=" ".join(reply.split()), images=pictures, codes=generated)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state | {"_lock": threading.RLock(), "_is_talking": False}

    def _next_size(self, height: int | None, width: int | None, codes: list[torch.Tensor]) -> tuple[int, int]:
        """(height, width) in pixels of pictures to generate after pictures of `codes`."""
        stride, default = self.pipe.processor.stride, self.pipe.config.default_size
        last = [stride * side for side in codes[-1].shape[1:]] if codes else [default, default]
        size = height or last[0], width or last[1]
        self.pipe.processor.check_size(*size)
        return size

    def _answer(self, size: tuple[int, int], max_new_tokens: int, settings: dict) -> tuple[list[dict], list]:
        """Content of the assistant's turn, and the codes of the pictures in it: text up to a `<|vision_start|>`, the
        picture that follows, more text, until the turn ends."""
        content, generated = [], []
        pictures = self._read_turns()
        while True:
            text, last = self._generate_text(pictures, max_new_tokens)
            if text:
                content.append({"type": "text", "text": text})
            if last == self.pipe.processor.vision_start_token_id and len(generated) == MAX_PICTURES:
                last = self._ids[-1] = self.pipe.processor.turn_end_token_id  # which the cache does not have yet
            if last != self.pipe.processor.vision_start_token_id:
                return content, generated
            generated.append(self._generate_picture(size, settings))
            content.append({"type": "image"})
            pictures = []

    def _read_turns(self) -> list[torch.Tensor]:
        """Adds the turns that are not in `_ids` yet, and returns the codes of their pictures."""
        processor = self.pipe.processor
        text = processor.apply_chat_template(self.messages[self._num_read :], add_generation_prompt=True)
        if self._num_read:  # the answer's <|im_end|> was the last that is known
            text = "\n" + text
        stride, pictures = processor.stride, self.codes[self._num_codes_read :]
        sizes = [(stride * codes.shape[1], stride * codes.shape[2]) for codes in pictures]
        new = processor(text=[text], picture_sizes=sizes or None)["input_ids"][0].tolist()
        self._ids += new
        self.pipe.mllm.config.check_positions(len(self._ids), 1, "text")
        self._num_read, self._num_codes_read = len(self.messages) + 1, len(self.codes)  # the answer will be known too
        return pictures

    def _generate_text(self, pictures: list[torch.Tensor], max_new_tokens: int) -> tuple[str, int]:
        """Text until the turn ends or a picture begins, and the token that ended it."""
        mllm, processor = self.pipe.mllm, self.pipe.processor
        max_new_tokens = mllm.config.count_fitting(len(self._ids), max_new_tokens)
        if max_new_tokens == 0:  # a picture took the last positions: the turn ends here
            self._ids.append(processor.turn_end_token_id)
            return "", processor.turn_end_token_id
        ids = torch.tensor([self._ids], device=self.pipe._execution_device)
        ends = [processor.turn_end_token_id, processor.vision_start_token_id]
        written = mllm.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            codes=[codes.to(ids.device) for codes in pictures] or None,
            past_key_values=self._cache,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=ends,
            pad_token_id=processor.tokenizer.pad_token_id,
        )[0, ids.shape[1] :].tolist()
        if written[-1] not in ends:  # too long: the turn ends here
            written.append(processor.turn_end_token_id)
        self._ids += written
        return processor.tokenizer.decode(written[:-1], skip_special_tokens=True).strip(), written[-1]

    def _generate_picture(self, size: tuple[int, int], settings: dict) -> torch.Tensor:
        """Codes [bits, h, w] of the picture that the last token begins; the cache then has it whole."""
        pipe, processor = self.pipe, self.pipe.processor
        tokenizer, device = processor.tokenizer, pipe._execution_device
        begin = processor(text=[processor.picture_tokens(*size)], add_special_tokens=False)
        self._ids += begin["input_ids"][0].tolist()
        _, negative = processor.generation_inputs(["picture"], *size)
        input_ids = torch.tensor([self._ids], device=device)
        pipe.check_length("text", input_ids, *size)
        codes = pipe.generate_codes(
            pipe.prepare_latents(1, *size),
            **settings,
            input_ids=input_ids,
            negative_input_ids=negative["input_ids"].to(device),
            past_key_values=self._cache,
        )[0]
        if pipe.interrupt or (codes == 0).any():  # the state may be that of a generation around this one
            raise InterruptedError("The turn was interrupted; the conversation is as it was before.")
        num_tokens = codes.shape[1] * codes.shape[2]
        self._ids += [processor.image_token_id] * num_tokens + tokenizer.convert_tokens_to_ids(["<|vision_end|>"])
        self._num_codes_read += 1
        return codes

    def forget_cache(self) -> None:
        """Frees the keys and values of what was read; the next turn reads the whole history anew.

        Raises:
            RuntimeError: when a callback of a turn calls it.
        """
        with self._lock:  # turns of other threads come to their end
            if self._is_talking:
                raise RuntimeError("A callback can't free the cache of the turn that calls it.")
            self._forget()

    def _forget(self) -> None:
        """Forgets what was read; the next turn reads the whole history anew."""
        self._ids: list[int] = []  # of all turns; the cache has the keys and values of the first of them
        self._cache = DynamicCache(config=self.pipe.mllm.config.text_config)
        self._num_read = self._num_codes_read = 0
        self._weights: str | None = None  # digest of those that filled the cache

    @property
    def history(self) -> list[dict]:
        """The turns as `{"role", "content"}`, with every picture decoded (noise of seed 0) as a PIL image, padding
        included."""
        pictures = iter(
            self.pipe.decode(codes[None], torch.Generator().manual_seed(0), "pil")[0] for codes in self.codes
        )
        return [
            {
                "role": turn["role"],
                "content": [
                    {"type": "image", "image": next(pictures)} if item["type"] == "image" else dict(item)
                    for item in turn["content"]
                ],
            }
            for turn in self.messages
        ]

    def save(self, folder: str | os.PathLike) -> Path:
        """Saves the conversation into a folder: `conversation.json`, the turns, and `pictures.safetensors`, the packed
        codes (16 bytes per token of 128 bits). An older conversation there is replaced.

        Raises:
            OSError: when `folder` can't be written.
            ValueError: when `folder` holds something else.
        """
        folder = Path(folder)
        if folder.exists() and not (folder / MESSAGES_FILE).is_file() and (folder.is_file() or any(folder.iterdir())):
            raise ValueError(f"`folder` {folder} holds something else than a conversation.")
        with self._lock:  # not in the middle of a turn
            codes, record = [*self.codes], {"format": FORMAT, "version": VERSION, "messages": [*self.messages]}

        def write(temporary: Path) -> None:
            temporary.mkdir(parents=True)
            save_codes(temporary / PICTURES_FILE, codes, self.pipe.mllm.vision_model.config)
            (temporary / MESSAGES_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")

        return save_whole(write, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike, pipe: UniWeTokPipelineMixin) -> "UniWeTokConversation":
        """Goes on with a saved conversation.

        Raises:
            ValueError: when `folder` holds no conversation, one of a newer version, or one that this pipeline's model
                can't go on with.
        """
        folder = Path(folder)
        try:
            record = read_json(folder / MESSAGES_FILE)
        except (OSError, ValueError) as error:
            raise ValueError(f"`folder` {folder} holds no conversation ({error}).") from None
        if record.get("format") != FORMAT or not isinstance(record.get("version"), int):
            raise ValueError(f"`folder` {folder}: {MESSAGES_FILE} holds no conversation.")
        if record["version"] > VERSION:
            raise ValueError(f"`folder` {folder} is of version {record['version']}: update uniwetok-hf.")
        if (problem := _problem_of(record.get("messages"))) is not None:
            raise ValueError(f"`folder` {folder}: {MESSAGES_FILE} is damaged: {problem}.")
        saved = load_codes(folder / PICTURES_FILE)
        saved.check_fits(pipe.mllm.vision_model.config)
        conversation = cls(pipe)
        conversation.messages, conversation.codes = record["messages"], [codes.float() for codes in saved.codes]
        pictures = sum(item["type"] == "image" for turn in conversation.messages for item in turn["content"])
        if pictures != len(conversation.codes):
            raise ValueError(
                f"`folder` {folder}: its turns have {pictures} pictures, its file {len(conversation.codes)}."
            )
        return conversation


def _problem_of(messages) -> str | None:
    """What is wrong with saved turns, None when nothing is."""
    if not isinstance(messages, list):
        return "`messages` is no list"
    for index, turn in enumerate(messages):
        if not isinstance(turn, dict) or turn.get("role") not in ("user", "assistant"):
            return f"`messages[{index}]` has no role"
        if not isinstance(turn.get("content"), list):
            return f"`messages[{index}]` has no list as `content`"
        for item in turn["content"]:
            is_text = isinstance(item, dict) and item.get("type") == "text" and isinstance(item.get("text"), str)
            if item != {"type": "image"} and not is_text:
                return f"`messages[{index}]` holds what is neither text nor an image"
    return None


__all__ = ["UniWeTokConversation", "UniWeTokReply"]
