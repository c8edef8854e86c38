# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Editing with the unified model: picture and instruction -> picture (docs/method.md 3.1, 3.4).

The source goes into the prompt as the picture that the user shows; guidance is measured against a prompt with neither
picture nor text, so that it strengthens both. A model that edits too timidly can strengthen the text more than the
picture, as in InstructPix2Pix (arXiv 2211.09800): what the text changes is measured against the same picture with an
instruction that changes nothing.

A model that generates better from names than from sight can first describe the result, and generate it behind the
description: what it understands serves what it generates (as "thinking" does in BAGEL, arXiv 2505.14683).
"""

from collections.abc import Callable, Sequence

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ..modeling.noise_uniwetok import Generators
from .image_intake import EncodedImage
from .lora_pipeline import UniWeTokLoraMixin
from .pipeline_mixin import UniWeTokPipelineMixin, check_count, check_number, check_texts, repeat_each
from .pipeline_output import UniWeTokPipelineOutput
from .writing import write_about


MAX_DESCRIPTION_TOKENS = 64


class UniWeTokEditPipeline(UniWeTokPipelineMixin, UniWeTokLoraMixin, DiffusionPipeline):
    r"""
    Pipeline for editing pictures as instructed. Same parts, arguments and folder as [`UniWeTokPipeline`]:
    `UniWeTokEditPipeline.from_pipe(pipe)`.

    Example:

    ```python
    >>> pipe = UniWeTokEditPipeline.from_pretrained(uniwetok_hf.embedded_path(), dtype=torch.float32)
    >>> pipe(Image.open("apple.png"), "make it green").images[0].save("green.png")
    ```
    """

    def check_inputs(
        self,
        image: Image.Image | EncodedImage | list[Image.Image | EncodedImage],
        prompt: str | list[str],
        height: int | None,
        width: int | None,
        num_inference_steps: int,
        guidance_scale: float,
        image_guidance_scale: float | None,
        negative_prompt: str | list[str],
        num_images_per_prompt: int,
        generator: Generators,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """`height` and `width` may be None: the source's.

        Raises:
            ValueError: for an argument out of range; the message names it.
        """
        images = image if isinstance(image, list) else [image]
        if not images or any(picture is None or isinstance(picture, str) for picture in images):
            raise ValueError(
                f"`image` must be a picture or a list of pictures (PIL.Image.open reads a file), got {image!r}."
            )
        check_texts("prompt", prompt)
        check_texts("negative_prompt", negative_prompt, may_be_empty=True)
        for name, texts in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            if isinstance(texts, list) and len(texts) != len(images):
                raise ValueError(
                    f"`{name}` must be one text, or one per picture: {len(images)} pictures, {len(texts)} texts."
                )
        negatives = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt
        self.processor.check_words(negatives, "negative_prompt")
        if image_guidance_scale is not None:
            check_number("image_guidance_scale", image_guidance_scale)
        unit = self.processor.stride * self.processor.patch_size
        self.processor.picture_tokens(unit if height is None else height, unit if width is None else width)
        check_count("num_images_per_prompt", num_images_per_prompt)
        self.check_settings(
            num_inference_steps,
            guidance_scale,
            generator,
            len(images) * num_images_per_prompt,
            output_type,
            callback_on_step_end_tensor_inputs,
        )

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | EncodedImage | list[Image.Image | EncodedImage],
        prompt: str | list[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        describe_first: bool | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("codes",),
    ) -> UniWeTokPipelineOutput | tuple:
        """Generates `num_images_per_prompt` edits of each picture.

        Args:
            image: the picture to change, or a list of them; what [`encode_image`] returned is not encoded again.
            prompt: the instruction; one for all pictures, or one per picture.
            height, width: size of the result in pixels. When not given, that at which the model sees the source: as
                `processor.image_processor` scales it and, with its `fit` "pad", pads it at the right and below.
            guidance_scale: weight w of the text; 1 or less is no guidance at all.
            image_guidance_scale: weight v of the picture: nothing + v (picture - nothing) + w (text - picture). Less
                than w leads away from the source, more keeps to it. When it equals w, the branch of the picture alone
                is left out, which saves a third of the work. When not given, it is to `guidance_scale` as the
                pipeline's `default_image_guidance_scale` to its `default_guidance_scale`. Not used without guidance.
            negative_prompt: the instruction of "picture" in that formula, one for all pictures or one per picture;
                best one that changes nothing, which the model has learnt. `default_negative_prompt` when not given.
                Not used where the branch of the picture alone is left out.
            describe_first: whether the model describes the result before it generates it, greedily; the descriptions
                are then in the output's `descriptions` (a tuple has none). For models that have learnt to.
                `default_describe_first` when not given.

        The other arguments are those of [`UniWeTokPipeline`].

        Raises:
            ValueError: for an argument out of range; the message names it.
        """
        # 1. Defaults and checks.
        num_inference_steps = self.value_or_default("num_inference_steps", num_inference_steps)
        guidance_scale = self.value_or_default("guidance_scale", guidance_scale)
        negative_prompt = self.value_or_default("negative_prompt", negative_prompt)
        self.check_inputs(
            image,
            prompt,
            height,
            width,
            num_inference_steps,
            guidance_scale,
            image_guidance_scale,
            negative_prompt,
            num_images_per_prompt,
            generator,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        image_guidance_scale = self.scale_for_images(guidance_scale, image_guidance_scale)

        # 2. Sources to codes, once; the size of the result is theirs, unless it is given.
        images = self.encode_image(image)
        if height is None or width is None:
            sizes = {source.size for source in images}
            if len(sizes) > 1:
                raise ValueError(
                    f"`image` holds pictures of different sizes {sorted(sizes)}: give `height` and `width`."
                )
            height, width = (given or own for given, own in zip((height, width), sizes.pop(), strict=True))

        # 3. Instructions to tokens, behind them the descriptions of the results, and codes to fill in.
        prompts = [prompt] * len(images) if isinstance(prompt, str) else prompt
        descriptions = None
        if self.value_or_default("describe_first", describe_first):
            descriptions = repeat_each(self.describe_results(images, prompts), num_images_per_prompt)
        prompt_inputs = self.encode_prompt(
            images,
            prompts,
            height,
            width,
            num_images_per_prompt,
            descriptions,
            negative_prompt if image_guidance_scale is not None else None,
        )
        latents = self.prepare_latents(len(prompt_inputs["input_ids"]), height, width)

        # 4. Patch by patch.
        codes = self.generate_codes(
            latents,
            num_inference_steps,
            guidance_scale,
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            image_guidance_scale=image_guidance_scale,
            **prompt_inputs,
        )

        # 5. Codes to pictures.
        edited = self.decode(codes, generator, output_type)
        self.maybe_free_model_hooks()
        return UniWeTokPipelineOutput(images=edited, descriptions=descriptions) if return_dict else (edited,)

    def describe_results(self, images: list[Image.Image | EncodedImage], prompts: list[str]) -> list[str]:
        """What the model says that it is going to generate when told to edit `images` as `prompts` say, one per
        picture: its most likely text up to the picture that the text introduces, in one line.

        Raises:
            ValueError: for a prompt with special tokens, or one that is too long.
        """
        self.maybe_load_model()
        processor = self.processor
        ends = [processor.vision_start_token_id, processor.turn_end_token_id]
        return write_about(
            self.mllm,
            processor,
            processor.request_texts(prompts, images),
            images,
            MAX_DESCRIPTION_TOKENS,
            ends=ends,
            device=self._execution_device,
            begin_suppress_tokens=ends,
        )

    def encode_prompt(
        self,
        images: list[EncodedImage],
        prompts: list[str],
        height: int,
        width: int,
        num_images_per_prompt: int = 1,
        descriptions: list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
    ) -> dict:
        """Arguments of [`generate_codes`] for edits of `height` x `width` pixels.

        Args:
            images, prompts: the sources, and one instruction for each.
            descriptions: what the assistant says before each of the results.
            negative_prompt: one or one per source, for guidance by picture and text apart.

        Returns:
            `input_ids` and `attention_mask` [B, L]; `codes`, a list of [bits, h, w]; `negative_input_ids` [1, L'], the
            prompt with neither picture nor text; with `negative_prompt` also `image_input_ids` and
            `image_attention_mask` [B, L''].

        Raises:
            ValueError: for a prompt with special tokens, or one that is too long.
        """
        images, prompts = repeat_each(images, num_images_per_prompt), repeat_each(prompts, num_images_per_prompt)
        sizes, device = [source.size for source in images], self._execution_device
        inputs, negative = self.processor.generation_inputs(prompts, height, width, None, descriptions, sizes)
        self.check_length("prompt", inputs["input_ids"], height, width)
        result = {
            "input_ids": inputs["input_ids"].to(device),
            "attention_mask": inputs["attention_mask"].to(device),
            "codes": [source.codes.to(device) for source in images],
            "negative_input_ids": negative["input_ids"].to(device),
        }
        if negative_prompt is not None:
            negatives = [negative_prompt] * len(images)
            if isinstance(negative_prompt, list):
                negatives = repeat_each(negative_prompt, num_images_per_prompt)
            others, _ = self.processor.generation_inputs(negatives, height, width, None, None, sizes)
            self.check_length("negative_prompt", others["input_ids"], height, width)
            result["image_input_ids"] = others["input_ids"].to(device)
            result["image_attention_mask"] = others["attention_mask"].to(device)
        return result

    def scale_for_images(self, guidance_scale: float, image_guidance_scale: float | None) -> float | None:
        """The weight of the picture alone; None where the branch of the picture alone is left out."""
        if image_guidance_scale is None:
            text, picture = self.config.default_guidance_scale, self.config.default_image_guidance_scale
            if picture is None or text <= 1:
                return None
            # In proportion, since it is their difference that leads away from the source.
            image_guidance_scale = guidance_scale * (picture / text)
        return None if guidance_scale <= 1 or image_guidance_scale == guidance_scale else image_guidance_scale


__all__ = ["UniWeTokEditPipeline"]
