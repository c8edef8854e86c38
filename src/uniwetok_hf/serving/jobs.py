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

from ..pipelines import UniWeTokEditPipeline, UniWeTokPipeline
from ..pipelines.conversation import MAX_PICTURES
from ..pipelines.pipeline_uniwetok_edit import MAX_DESCRIPTION_TOKENS
from .batches import PictureRow, Row, TextRow
from .requests import ChatRequest, EditRequest, Finished, GenerationRequest, Part, PicturePart, Request, TextPart


Job = Generator[Row, Any, None]
Emit = Callable[[Part], None]


class Jobs:
    """Checks requests, and starts jobs of them.

    Args:
        pipe: the pipeline whose model computes.
    """

    def __init__(self, pipe: UniWeTokPipeline):
        self.pipe, self.edit_pipe = pipe, UniWeTokEditPipeline.from_pipe(pipe)
        for one in (self.pipe, self.edit_pipe):
            one.set_progress_bar_config(disable=True)

    def check(self, request: Request) -> None:
        """
        Raises:
            ValueError: for an argument out of range; the message names it.
        """
        if isinstance(request, ChatRequest):
            self._check_chat(request)
            return
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

    def _check_chat(self, request: ChatRequest) -> None:
        pipe = self.pipe
        steps = pipe.value_or_default("num_inference_steps", request.num_inference_steps)
        pipe.check_settings(steps, pipe.value_or_default("guidance_scale", request.guidance_scale), None, 1)
        pipe.processor.check_size(request.height, request.width)
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
        """Text up to a picture, the picture, more text, until the turn ends."""
        pipe, processor, settings = self.pipe, self.pipe.processor, self._settings(request)
        shown = [pipe.encode_image(image)[0] for image in request.images]
        text, sizes = self._conversation_text(request), [source.pixel_size for source in shown]
        ids: list[int] = processor(text=[text], picture_sizes=sizes or None)["input_ids"][0].tolist()
        last = sizes[-1] if sizes else (pipe.config.default_size, pipe.config.default_size)
        size = request.height or last[0], request.width or last[1]
        processor.check_size(*size)
        codes, num_prompt, generated = [source.codes for source in shown], len(ids), []
        reason, begin = "stop", processor.vision_start_token_id
        text_generator = torch.Generator().manual_seed(request.seed)
        while True:
            if "text" in request.modalities:
                stream = _TextStream(processor, emit, is_first=not generated)
                row = self._text_row(request, ids, codes, text_generator, stream)
                written = yield row
                stream.finish()
                if written[-1] not in row.ends:
                    reason = "length"
                    ids += written
                    break
                ids += written
                if written[-1] != begin or len(generated) == MAX_PICTURES:
                    break
            else:
                ids.append(begin)
            picture = yield self._picture_of_chat(ids, codes, size, settings)
            ids += [processor.image_token_id] * picture[0].numel()
            ids += processor.tokenizer.convert_tokens_to_ids(["<|vision_end|>"])
            codes.append(picture)
            generated.append(picture)
            emit(PicturePart(pipe.decode(picture[None], settings["generator"], "pil")[0]))
            if "text" not in request.modalities:
                break
        emit(Finished(reason, num_prompt, len(ids) - num_prompt))

    def _text_row(self, request: ChatRequest, ids: list[int], codes: list, generator, stream) -> TextRow:
        processor, config = self.pipe.processor, self.pipe.mllm.config
        config.check_positions(len(ids), request.max_new_tokens, "messages")
        ends = processor.turn_end_token_id, processor.vision_start_token_id
        return TextRow(
            adapter=request.model,
            input_ids=torch.tensor([ids]),
            codes=[*codes],
            max_new_tokens=request.max_new_tokens,
            ends=ends,
            banned=() if "image" in request.modalities else ends[1:],
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
        num_shown = sum(item["type"] == "image" for message in request.messages for item in message["content"])
        if num_shown != len(request.images):
            raise ValueError(f"`messages` show {num_shown} pictures, `images` has {len(request.images)}.")
        return str(self.pipe.processor.apply_chat_template([*request.messages], add_generation_prompt=True))

    def _text_of(self, tokens: list[int]) -> str:
        return " ".join(self.pipe.processor.tokenizer.decode(tokens, skip_special_tokens=True).split())


class _TextStream:
    """Text as it grows: characters once they are whole, white space once something follows it."""

    def __init__(self, processor, emit: Emit, is_first: bool):
        self.tokenizer, self.emit = processor.tokenizer, emit
        self.before = "" if is_first else " "  # between this text and the one before the picture
        self.text = ""
        self.num_sent = 0

    def write(self, tokens: list[int], ends: tuple[int, ...]) -> None:
        """All tokens so far."""
        tokens = tokens[:-1] if tokens[-1] in ends else tokens
        self.text = self.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        self._send(self.text.rstrip("\ufffd"))  # the beginning of a character

    def finish(self) -> None:
        self._send(self.text)

    def _send(self, text: str) -> None:
        if len(text) > self.num_sent:
            self.emit(TextPart(self.before + text[self.num_sent :]))
            self.before, self.num_sent = "", len(text)


__all__ = ["Jobs"]
