# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Editing with the unified model: picture and instruction -> picture (spec 3.3).

The source goes into the prompt as the picture that the user shows; guidance is measured against a prompt with neither
picture nor words, so that it strengthens both. A model that edits too timidly can strengthen the words more than the
picture, as in InstructPix2Pix (arXiv 2211.09800): what they change is measured against the same picture with words
that change nothing.

A model that draws better from names than from sight can first say in words what the result will be, and draw it behind
those: what it understands serves what it draws (as "thinking" does in BAGEL, arXiv 2505.14683).
"""

from collections.abc import Callable

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ..modeling.noise_uniwetok import Generators
from .pipeline_output import UniWeTokPipelineOutput
from .pipeline_uniwetok import UniWeTokPipeline, _check_number, _given
from .writing import write_about


MAX_DESCRIPTION_TOKENS = 64


class UniWeTokEditPipeline(UniWeTokPipeline):
    r"""
    Changes pictures as told. Same parts and folder as [`UniWeTokPipeline`]: `UniWeTokEditPipeline.from_pipe(pipe)`.

    Example:

    ```python
    >>> pipe = UniWeTokEditPipeline.from_pretrained(uniwetok_hf.embedded_path("uniwetok-emoji"), dtype=torch.float32)
    >>> pipe(Image.open("apple.png"), "make it green").images[0].save("green.png")
    ```
    """

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | list[Image.Image],
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
        """Draws `num_images_per_prompt` edits for each picture.

        Args:
            image: the picture to change, or a list of them.
            prompt: the instruction; one for all pictures, or one a picture.
            height, width: size of the result in pixels. When not given, that at which the model sees the source: as
                `processor.image_processor` scales it and, with its `fit` "pad", fills it up at the right and below.
            guidance_scale: weight w of the words; 1 or less is no guidance at all.
            image_guidance_scale: weight v of the picture: nothing + v (picture - nothing) + w (words - picture). Less
                than w leads away from the source, more keeps to it; when it is w itself, the picture alone is not
                looked at, which saves a third of the work. When not given, it is to `guidance_scale` as the pipeline's
                `default_image_guidance_scale` to its `default_guidance_scale`.
                Without guidance it does nothing.
            negative_prompt: the instruction of "picture" in that formula, one for all pictures or one a picture; best
                one that changes nothing, which the model has learnt. `default_negative_prompt` when not given. Where
                the picture alone is not looked at it does nothing.
            describe_first: whether the model says what the result will be before it draws it, its most likely words,
                which are then in the output's `descriptions` (a tuple has none). For models that have learnt to.
                `default_describe_first` when not given.

        The other arguments are those of [`UniWeTokPipeline`].

        Raises:
            ValueError: for an argument out of range; the message names it.
        """
        num_inference_steps = _given(num_inference_steps, self.config.default_num_inference_steps)
        guidance_scale = _given(guidance_scale, self.config.default_guidance_scale)
        images = image if isinstance(image, list) else [image]
        if not images or any(picture is None or isinstance(picture, str) for picture in images):
            raise ValueError(
                f"`image` must be a picture or a list of pictures (PIL.Image.open reads a file), got {image!r}."
            )
        prompts = self.check_inputs(
            [prompt] * len(images) if isinstance(prompt, str) else prompt,
            num_inference_steps,
            guidance_scale,
            num_images_per_prompt,
            generator,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        image_guidance_scale = self.scale_for_images(guidance_scale, image_guidance_scale)
        prompts = _one_a_picture("prompt", prompts, len(images))
        negatives = _given(negative_prompt, self.config.default_negative_prompt)
        negatives = _one_a_picture("negative_prompt", negatives, len(images))
        self.processor.check_words(negatives, "negative_prompt")
        if height is None or width is None:
            seen = {tuple(p.shape[-2:]) for p in self.processor.image_processor(images)["pixel_values"]}
            if len(seen) > 1:
                raise ValueError(
                    f"`image` holds pictures of different sizes {sorted(seen)}: give `height` and `width`."
                )
            seen_height, seen_width = seen.pop()
            height, width = _given(height, seen_height), _given(width, seen_width)
        descriptions = None
        if _given(describe_first, self.config.default_describe_first):
            described = self.describe_results(images, prompts)
            descriptions = [words for words in described for _ in range(num_images_per_prompt)]
        codes = self.draw(
            [words for words in prompts for _ in range(num_images_per_prompt)],
            height,
            width,
            num_inference_steps,
            guidance_scale,
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            images=[picture for picture in images for _ in range(num_images_per_prompt)],
            negative_prompts=[words for words in negatives for _ in range(num_images_per_prompt)],
            image_guidance_scale=image_guidance_scale,
            descriptions=descriptions,
        )
        edited = self.decode(codes, generator, output_type)
        self.maybe_free_model_hooks()
        return UniWeTokPipelineOutput(images=edited, descriptions=descriptions) if return_dict else (edited,)

    def describe_results(self, images: list[Image.Image], prompts: list[str]) -> list[str]:
        """What the model says it is going to draw when told to edit `images` as `prompts` say, one a picture: its most
        likely words up to the picture that they introduce, in one line.

        Raises:
            ValueError: for a prompt with special tokens, or one that is too long.
        """
        self._load_model()
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

    def scale_for_images(self, guidance_scale: float, image_guidance_scale: float | None) -> float | None:
        """The weight of the picture alone; None where it need not be looked at."""
        if image_guidance_scale is None:
            words, picture = self.config.default_guidance_scale, self.config.default_image_guidance_scale
            if picture is None or words <= 1:
                return None
            # In proportion, since it is their difference that leads away from the source.
            image_guidance_scale = guidance_scale * (picture / words)
        _check_number("image_guidance_scale", image_guidance_scale)
        return None if guidance_scale <= 1 or image_guidance_scale == guidance_scale else image_guidance_scale


def _one_a_picture(name: str, texts: str | list[str], num_pictures: int) -> list[str]:
    """`texts` as a list with one for each picture; ValueError naming the argument where it is none."""
    if isinstance(texts, str):
        return [texts] * num_pictures
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`{name}` must be a text or a list of texts, got {texts!r}.")
    if len(texts) != num_pictures:
        raise ValueError(f"`{name}` must be one text or one a picture: {num_pictures} pictures, {len(texts)} texts.")
    return texts


__all__ = ["UniWeTokEditPipeline"]
