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
from .pipeline_base import check_count, check_latents, check_number, check_texts, repeat_each
from .pipeline_mixin import UniWeTokPipelineMixin
from .pipeline_output import UniWeTokPipelineOutput
from .writing import generate_text


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
        """`height` and `width` may be None: the source's. Special tokens and length are checked by [`encode_prompt`].

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
        if image_guidance_scale is not None:
            check_number("image_guidance_scale", image_guidance_scale)
        self.processor.check_size(height, width)
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
        latents: torch.Tensor | None = None,
    ) -> UniWeTokPipelineOutput | tuple:
        """Generates `num_images_per_prompt` edits of each picture.

        Args:
            image: the picture to change, or a list of them; what [`encode_image`] returned is not encoded again.
            prompt: the instruction; one for all pictures, or one per picture.
            height, width: size of the result in pixels. When not given, that of the source as
                `processor.image_processor` scales it: with its `fit` "pad" the model sees and generates it with
                padding at the right and below, which is then cut off. "latent" keeps the padding; so do "np" and "pt"
                for sources of which it differs. When one of the two is given, nothing is cut off.
            guidance_scale: weight w of the text; 1 or less is no guidance at all.
            image_guidance_scale: weight w_img of the picture. Guidance mixes three predictions: unconditional + w_img
                (picture - unconditional) + w (full - picture), where "full" reads picture and prompt, "picture" the
                picture with `negative_prompt`, and "unconditional" neither. A weight below w leads away from the
                source, one above w keeps to it. When it equals w, the branch "picture" drops out, which saves a third
                of the work. When not given, it is to `guidance_scale` as the pipeline's
                `default_image_guidance_scale` to its `default_guidance_scale`. Not used without guidance.
            negative_prompt: the instruction of the branch "picture", one for all pictures or one per picture. Choose
                one that changes nothing and that the model was trained with. `default_negative_prompt` when not given.
                Not used where that branch drops out.
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
        images, content_sizes = self.encode_image(image), None
        if height is None and width is None:
            content_sizes = repeat_each([source.content_size for source in images], num_images_per_prompt)
        if height is None or width is None:
            sizes = {source.pixel_size for source in images}
            if len(sizes) > 1:
                raise ValueError(
                    f"`image` holds pictures of different sizes {sorted(sizes)}: give `height` and `width`."
                )
            height, width = (given or own for given, own in zip((height, width), sizes.pop(), strict=True))
        check_latents(latents, self.latents_shape(len(images) * num_images_per_prompt, height, width))

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
        codes = self.prepare_latents(len(prompt_inputs["input_ids"]), height, width)

        # 4. Patch by patch.
        codes = self.generate_codes(
            codes,
            num_inference_steps,
            guidance_scale,
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            image_guidance_scale=image_guidance_scale,
            noise=latents,
            **prompt_inputs,
        )

        # 5. Codes to pictures, without the padding.
        edited = self.decode(codes, generator, output_type, content_sizes)
        self.maybe_free_model_hooks()
        return UniWeTokPipelineOutput(images=edited, descriptions=descriptions) if return_dict else (edited,)

    def describe_results(self, images: list[Image.Image | EncodedImage], prompts: list[str]) -> list[str]:
        """Descriptions of the results of `prompts` on `images`, one line each: the most likely text that the model
        writes before it begins the edited picture.

        Raises:
            ValueError: for a prompt with special tokens, or one that is too long.
        """
        self.maybe_load_model()
        processor = self.processor
        ends = [processor.vision_start_token_id, processor.turn_end_token_id]  # of the description
        return generate_text(
            self.mllm,
            processor,
            processor.request_texts(prompts, is_edit=True),
            images,
            MAX_DESCRIPTION_TOKENS,
            ends=ends,
            device=self._execution_device,
            begin_suppress_tokens=ends,  # a description has at least one token
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
            The prompts of the three branches of guidance (docs/method.md 3.4), under the names of the model's
            `generate_codes`:

            - `input_ids` and `attention_mask` [B, L]: picture, instruction and description
            - `image_input_ids` and `image_attention_mask` [B, L'']: picture and `negative_prompt`, if given
            - `negative_input_ids` [1, L']: neither picture nor text, whatever `negative_prompt` says

            and `codes`, a list of [bits, h, w], the pictures of the first two.

        Raises:
            ValueError: for a prompt with special tokens, or one that is too long.
        """
        images, prompts = repeat_each(images, num_images_per_prompt), repeat_each(prompts, num_images_per_prompt)
        sizes, device = [source.pixel_size for source in images], self._execution_device
        full, unconditional = self.processor.generation_inputs(
            prompts, height, width, picture_sizes=sizes, descriptions=descriptions
        )
        self.check_length("prompt", full["input_ids"], height, width)
        result = {
            "input_ids": full["input_ids"].to(device),
            "attention_mask": full["attention_mask"].to(device),
            "negative_input_ids": unconditional["input_ids"].to(device),
            "codes": [source.codes.to(device) for source in images],
        }
        if negative_prompt is not None:
            negatives = [negative_prompt] * len(images)
            if isinstance(negative_prompt, list):
                negatives = repeat_each(negative_prompt, num_images_per_prompt)
            picture_only, _ = self.processor.generation_inputs(
                negatives, height, width, picture_sizes=sizes, argument="negative_prompt"
            )
            self.check_length("negative_prompt", picture_only["input_ids"], height, width)
            result["image_input_ids"] = picture_only["input_ids"].to(device)
            result["image_attention_mask"] = picture_only["attention_mask"].to(device)
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
