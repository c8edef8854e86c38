# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The steps of each kind of request.

A job is a generator: it yields a row that it wants computed, is sent the result, and so on; the parts of its answer go
to `emit`. So an edit reads like the pipeline's call, and its rows can be computed together with those of other jobs.
The pipeline gives the same picture for the same seed (`torch.Generator().manual_seed(seed)`): pictures are encoded and
decoded one by one, so that not even the last bit of a pixel depends on what else is asked.
"""

from collections.abc import Callable, Generator
from typing import Any

import torch
from PIL import Image

from ..pipelines import UniWeTokEditPipeline, UniWeTokPipeline
from ..pipelines.conversation import MAX_PICTURES
from ..pipelines.pipeline_base import check_count, check_number
from ..pipelines.pipeline_uniwetok_edit import MAX_DESCRIPTION_TOKENS
from .batches import PictureRow, Row, TextRow
from .requests import ChatRequest, EditRequest, Finished, GenerationRequest, Part, PicturePart, Request, TextPart


# Longer texts are refused before they are tokenized, for which all others would have to wait.
CHARACTERS_PER_POSITION = 16

Job = Generator[Row, Any, None]
Emit = Callable[[Part], None]


def defaults_of(pipe: UniWeTokPipeline) -> dict[str, Any]:
    """The settings of a pipeline that are used where a call gives none."""
    return {name: value for name, value in pipe.config.items() if name.startswith("default_")}


class Jobs:
    """Checks requests, and starts jobs of them.

    Args:
        pipe: the pipeline whose model computes.
    """

    def __init__(self, pipe: UniWeTokPipeline):
        # Not `from_pipe`, which gives all parts of a model one dtype.
        self.pipe, self.edit_pipe = pipe, UniWeTokEditPipeline(**pipe.components, **defaults_of(pipe))
        for one in (self.pipe, self.edit_pipe):
            one.set_progress_bar_config(disable=True)

    def check(self, request: Request) -> None:
        """
        Raises:
            ValueError: for an argument out of range; the message names it.
        """
        if not isinstance(request.seed, int) or not 0 <= request.seed < 2**63:
            raise ValueError(f"`seed` must be a whole number from 0 to 2^63 - 1, got {request.seed!r:.100}.")
        if isinstance(request, ChatRequest):
            self._check_chat(request)
            return
        if not isinstance(request.prompt, str):
            raise ValueError(f"`prompt` must be one text, got {request.prompt!r:.100}.")
        if isinstance(request, EditRequest) and not isinstance(request.image, Image.Image):
            raise ValueError(f"`image` must be one PIL image, got {type(request.image).__name__}.")
        self._check_characters("prompt", request.prompt)
        self._check_characters("negative_prompt", request.negative_prompt or "")
        pipe = self.pipe if isinstance(request, GenerationRequest) else self.edit_pipe
        steps = pipe.value_or_default("num_inference_steps", request.num_inference_steps)
        scale = pipe.value_or_default("guidance_scale", request.guidance_scale)
        common = {"num_images_per_prompt": 1, "generator": None, "output_type": "pil"}
        common["callback_on_step_end_tensor_inputs"] = ()
        if isinstance(request, GenerationRequest):
            size = [self.pipe.value_or_default("size", side) for side in (request.height, request.width)]
            negative = request.negative_prompt
            pipe.check_inputs(request.prompt, *size, steps, scale, **common, negative_prompt=negative)
            pipe.encode_prompt(request.prompt, *size, negative_prompt=negative)
        else:
            negative, picture_scale = request.negative_prompt or "", request.image_guidance_scale
            size = request.height, request.width
            pipe.check_inputs(request.image, request.prompt, *size, steps, scale, picture_scale, negative, **common)
            pipe.processor.check_words([request.prompt])
            pipe.processor.check_words([negative], "negative_prompt")

    def _check_characters(self, name: str, text: str) -> None:
        num_positions = getattr(self.pipe.mllm.config.text_config, "max_position_embeddings", None)
        if num_positions is not None and len(text) > CHARACTERS_PER_POSITION * num_positions:
            most = CHARACTERS_PER_POSITION * num_positions
            raise ValueError(f"`{name}` has {len(text)} characters; at most {most} are read.")

    def _check_chat(self, request: ChatRequest) -> None:
        pipe = self.pipe
        steps = pipe.value_or_default("num_inference_steps", request.num_inference_steps)
        pipe.check_settings(steps, pipe.value_or_default("guidance_scale", request.guidance_scale), None, 1)
        pipe.processor.check_size(request.height, request.width)
        check_count("max_new_tokens", request.max_new_tokens)
        check_number("temperature", request.temperature)
        check_number("top_p", request.top_p)
        if request.temperature < 0:
            raise ValueError(f"`temperature` must be 0 or more, got {request.temperature}.")
        if not 0 < request.top_p <= 1:
            raise ValueError(f"`top_p` must be over 0 and at most 1, got {request.top_p}.")
        if not request.modalities or not {*request.modalities} <= {"text", "image"}:
            raise ValueError(f"`modalities` must hold 'text', 'image' or both, got {request.modalities!r:.100}.")
        self._conversation_text(request)

    def start(self, request: Request, emit: Emit) -> Job:
        """The steps of a request, of which nothing is computed yet."""
        if isinstance(request, GenerationRequest):
            return self._generation(request, emit)
        if isinstance(request, EditRequest):
            return self._edit(request, emit)
        if isinstance(request, ChatRequest):
            return self._chat(request, emit)
        raise TypeError(f"`request` is a {type(request).__name__}.")

    def _settings(self, request: Request) -> dict:
        return {
            "adapter": request.model,
            "num_inference_steps": self.pipe.value_or_default("num_inference_steps", request.num_inference_steps),
            "guidance_scale": self.pipe.value_or_default("guidance_scale", request.guidance_scale),
            "generator": torch.Generator().manual_seed(request.seed),
        }

    def _generation(self, request: GenerationRequest, emit: Emit) -> Job:
        pipe, settings = self.pipe, self._settings(request)
        size = (pipe.value_or_default("size", request.height), pipe.value_or_default("size", request.width))
        inputs = pipe.encode_prompt(request.prompt, *size, negative_prompt=request.negative_prompt)
        codes = yield PictureRow(inputs=inputs, size=size, **settings)
        emit(PicturePart(pipe.decode(codes[None], settings["generator"], "pil")[0]))
        emit(Finished("stop", inputs["input_ids"].shape[1], codes[0].numel()))

    def _edit(self, request: EditRequest, emit: Emit) -> Job:
        pipe, settings = self.edit_pipe, self._settings(request)
        [source] = pipe.encode_image(request.image)
        content_sizes = [source.content_size] if request.height is None and request.width is None else None
        height, width = request.height or source.pixel_size[0], request.width or source.pixel_size[1]
        scale = pipe.scale_for_images(settings["guidance_scale"], request.image_guidance_scale)
        negative = pipe.value_or_default("negative_prompt", request.negative_prompt)
        description, num_written = None, 0
        if pipe.value_or_default("describe_first", None):
            written = yield self._description(request, source)
            description, num_written = self._text_of(written), len(written)
        inputs = pipe.encode_prompt(
            [source],
            [request.prompt],
            height,
            width,
            descriptions=None if description is None else [description],
            negative_prompt=negative if scale is not None else None,
        )
        codes = yield PictureRow(inputs=inputs, size=(height, width), image_guidance_scale=scale, **settings)
        picture = pipe.decode(codes[None], settings["generator"], "pil", content_sizes)[0]
        emit(PicturePart(picture, description))
        emit(Finished("stop", inputs["input_ids"].shape[1] - num_written, codes[0].numel() + num_written))

    def _description(self, request: EditRequest, source) -> TextRow:
        """What the model is to write before it begins the edited picture, as the pipeline's `describe_results`."""
        processor = self.pipe.processor
        ends = processor.vision_start_token_id, processor.turn_end_token_id
        text = processor.request_texts([request.prompt], is_edit=True)
        input_ids = processor(text=text, picture_sizes=[source.pixel_size])["input_ids"]
        self.pipe.mllm.config.check_positions(input_ids.shape[1], MAX_DESCRIPTION_TOKENS)
        return TextRow(
            adapter=request.model,
            input_ids=input_ids,
            codes=[source.codes],
            max_new_tokens=MAX_DESCRIPTION_TOKENS,
            ends=ends,
            banned_first=ends,
        )

    def _chat(self, request: ChatRequest, emit: Emit) -> Job:
        """Text up to a picture, the picture, more text, until the turn ends. As in [`UniWeTokConversation`], pictures
        are decoded once all are there, which decides the noise that each gets: what follows the first waits for that.
        """
        pipe, settings = self.pipe, self._settings(request)
        image_token, begin = pipe.processor.image_token_id, pipe.processor.vision_start_token_id
        [end] = pipe.processor.tokenizer.convert_tokens_to_ids(["<|vision_end|>"])
        ids, codes, size = self._read_conversation(request)
        num_prompt, reason, num_generated, gap = len(ids), "stop", 0, ""
        later: list[Part | torch.Tensor] = []
        text_generator = torch.Generator().manual_seed(request.seed)
        while True:
            if "text" in request.modalities:
                most = self._most_new_tokens(request, len(ids), is_first=not num_generated)
                stream = _TextStream(pipe.processor, later.append if num_generated else emit, gap)
                row = self._text_row(request, ids, codes, most, text_generator, stream)
                written = (yield row) if most else []
                ids += written
                stream.finish()
                gap = " " if stream.text else gap
                if not written or written[-1] not in row.ends:
                    reason = "length"
                    break
                if written[-1] != begin or num_generated == MAX_PICTURES:
                    break
            else:
                ids.append(begin)
            picture = yield self._picture_of_chat(ids, codes, size, settings)
            ids += [*[image_token] * picture[0].numel(), end]
            codes.append(picture)
            later.append(picture)
            num_generated += 1
            if "text" not in request.modalities:
                break
        for part in later:
            if isinstance(part, torch.Tensor):
                part = PicturePart(pipe.decode(part[None], settings["generator"], "pil")[0])
            emit(part)
        emit(Finished(reason, num_prompt, len(ids) - num_prompt))

    def _read_conversation(self, request: ChatRequest) -> tuple[list[int], list[torch.Tensor], tuple[int, int]]:
        """The tokens up to the header of the answer, the codes of the pictures in them, and the (height, width) in
        pixels of pictures to generate."""
        pipe, processor = self.pipe, self.pipe.processor
        shown = [pipe.encode_image(image)[0] for image in request.images]
        sizes = [source.pixel_size for source in shown]
        inputs = processor(text=[self._conversation_text(request)], picture_sizes=sizes or None)
        last = sizes[-1] if sizes else (pipe.config.default_size, pipe.config.default_size)
        size = request.height or last[0], request.width or last[1]
        processor.check_size(*size)
        return inputs["input_ids"][0].tolist(), [source.codes for source in shown], size

    def _most_new_tokens(self, request: ChatRequest, num_read: int, is_first: bool) -> int:
        """The longest text to write; behind a picture no more than there are positions left.

        Raises:
            ValueError: when the first text may not fit.
        """
        config = self.pipe.mllm.config
        if is_first:
            config.check_positions(num_read, request.max_new_tokens, "messages")
        return config.count_fitting(num_read, request.max_new_tokens)

    def _text_row(self, request: ChatRequest, ids: list[int], codes: list, most: int, generator, stream) -> TextRow:
        processor, config = self.pipe.processor, self.pipe.mllm.config
        ends = processor.turn_end_token_id, processor.vision_start_token_id
        # Not to be written: when the text is read again, these would be taken for parts of a picture.
        queries = range(config.query_token_id, config.query_token_id + config.tokens_per_patch - 1)
        banned = config.image_token_id, *queries
        return TextRow(
            adapter=request.model,
            input_ids=torch.tensor([ids]),
            codes=[*codes],
            max_new_tokens=most,
            ends=ends,
            banned=banned if "image" in request.modalities else (*banned, ends[1]),
            temperature=request.temperature,
            top_p=request.top_p,
            generator=generator,
            on_token=lambda tokens: stream.write(tokens, ends),
        )

    def _picture_of_chat(self, ids: list[int], codes: list, size: tuple[int, int], settings: dict) -> PictureRow:
        """The picture that `ids` begin, to which its size and queries are added."""
        pipe, processor = self.pipe, self.pipe.processor
        begin = processor(text=[processor.picture_tokens(*size)], add_special_tokens=False)
        ids += begin["input_ids"][0].tolist()
        _, negative = processor.generation_inputs(["picture"], *size)
        input_ids, device = torch.tensor([ids]), pipe._execution_device
        pipe.check_length("messages", input_ids, *size)
        inputs = {"input_ids": input_ids.to(device), "negative_input_ids": negative["input_ids"].to(device)}
        return PictureRow(inputs=inputs | {"codes": [one.to(device) for one in codes]}, size=size, **settings)

    def _conversation_text(self, request: ChatRequest) -> str:
        processor = self.pipe.processor
        text = str(processor.apply_chat_template([*request.messages], add_generation_prompt=True))
        self._check_characters("messages", text)
        if (num_shown := text.count(processor.image_token)) != len(request.images):
            raise ValueError(f"`messages` show {num_shown} pictures, `images` has {len(request.images)}.")
        return text

    def _text_of(self, tokens: list[int]) -> str:
        return " ".join(self.pipe.processor.tokenizer.decode(tokens, skip_special_tokens=True).split())


class _TextStream:
    """Text as it grows: characters once they are whole, white space once something follows it. `gap` goes before the
    first of them."""

    def __init__(self, processor, emit: Emit, gap: str = ""):
        self.tokenizer, self.emit, self.gap = processor.tokenizer, emit, gap
        self.text = ""
        self.num_sent = 0

    def write(self, tokens: list[int], ends: tuple[int, ...]) -> None:
        """All tokens so far."""
        tokens = tokens[:-1] if tokens[-1] in ends else tokens
        self.text = self.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        self._send(self.text.rstrip("\ufffd").rstrip())  # without the beginning of a character

    def finish(self) -> None:
        self._send(self.text)

    def _send(self, text: str) -> None:
        if len(text) > self.num_sent:
            self.emit(TextPart(self.gap + text[self.num_sent :]))
            self.gap, self.num_sent = "", len(text)


__all__ = ["Jobs", "defaults_of"]
