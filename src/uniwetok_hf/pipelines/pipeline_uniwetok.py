# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Text-to-image with the unified model: prompt -> codes, patch by patch -> picture (docs/method.md 3.1, 3.4)."""

from collections.abc import Callable, Sequence

import torch
from diffusers import DiffusionPipeline

from ..modeling.generation_uniwetok_mllm import left_pad_rows
from ..modeling.noise_uniwetok import Generators
from .lora_pipeline import UniWeTokLoraMixin
from .pipeline_base import check_count, check_latents, check_texts, repeat_each
from .pipeline_mixin import UniWeTokPipelineMixin
from .pipeline_output import UniWeTokPipelineOutput


class UniWeTokPipeline(UniWeTokPipelineMixin, UniWeTokLoraMixin, DiffusionPipeline):
    r"""
    Pipeline for text-to-image generation. Adapters are loaded, mixed and merged as in diffusers
    ([`UniWeTokLoraMixin`]).

    Args:
        processor ([`UniWeTokProcessor`]): prompts and pictures to model inputs.
        mllm ([`UniWeTokForCausalLM`]): the unified model; the image tokenizer is its `vision_model`.
        scheduler ([`BinaryFlowScheduler`]): sampler of the binary head.
        default_size (`int`, defaults to 1024): side in pixels of pictures whose `height` or `width` is not given.
        default_num_inference_steps (`int`, defaults to 50), default_guidance_scale (`float`, defaults to 7.5): used
            when a call gives none. All are saved with the pipeline, since small models were tuned to other values.
        default_image_guidance_scale (`float`, *optional*), default_negative_prompt (`str`, defaults to ""),
            default_describe_first (`bool`, defaults to `False`): the same for edits; a scale of None is that of the
            text ([`UniWeTokEditPipeline`]).

    Example:

    ```python
    >>> pipe = UniWeTokPipeline.from_pretrained(uniwetok_hf.embedded_path(), dtype=torch.float32)
    >>> pipe("a red apple", generator=torch.Generator().manual_seed(0)).images[0].save("apple.png")
    ```
    """

    def check_inputs(
        self,
        prompt: str | list[str],
        height: int,
        width: int,
        num_inference_steps: int,
        guidance_scale: float,
        num_images_per_prompt: int,
        generator: Generators,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
        negative_prompt: str | list[str] | None = None,
        latents: torch.Tensor | None = None,
    ) -> None:
        """Special tokens and length are checked by [`encode_prompt`].

        Raises:
            ValueError: for an argument out of range; the message names it.
        """
        num_images = self.check_prompts(prompt, height, width, num_images_per_prompt, negative_prompt)
        check_latents(latents, self.latents_shape(num_images, height, width))
        self.check_settings(
            num_inference_steps,
            guidance_scale,
            generator,
            num_images,
            output_type,
            callback_on_step_end_tensor_inputs,
        )

    def check_prompts(
        self,
        prompt: str | list[str],
        height: int,
        width: int,
        num_images_per_prompt: int,
        negative_prompt: str | list[str] | None,
    ) -> int:
        """The number of pictures that are asked for.

        Raises:
            ValueError: for an argument out of range; the message names it.
        """
        check_texts("prompt", prompt)
        self.processor.check_size(height, width)
        check_count("num_images_per_prompt", num_images_per_prompt)
        num_prompts = 1 if isinstance(prompt, str) else len(prompt)
        if negative_prompt is not None:
            check_texts("negative_prompt", negative_prompt, may_be_empty=True)
            if isinstance(negative_prompt, list) and len(negative_prompt) != num_prompts:
                raise ValueError(
                    f"`negative_prompt` must be one text, or one per prompt: {num_prompts} prompts, "
                    f"{len(negative_prompt)} texts."
                )
        return num_images_per_prompt * num_prompts

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("codes",),
        negative_prompt: str | list[str] | None = None,
        latents: torch.Tensor | None = None,
    ) -> UniWeTokPipelineOutput | tuple:
        """Generates `num_images_per_prompt` pictures for each prompt.

        Args:
            prompt: what the picture shows, or a list of prompts.
            height, width: size in pixels, multiples of the model's stride x patch size; `default_size` when not given.
            num_inference_steps: diffusion steps per patch.
            guidance_scale: weight of classifier-free guidance; 1 or less is none and halves the work.
            num_images_per_prompt: pictures per prompt; those of one prompt lie side by side in the result.
            generator: source of all randomness; a list with one per picture makes each independent of its batch.
            output_type: "pil", "np" ([B, H, W, 3] in [0, 1]), "pt" ([B, 3, H, W] in [0, 1]) or "latent" (codes [B,
                bits, h, w] of {-1, +1}).
            return_dict: whether to return a [`UniWeTokPipelineOutput`] or a tuple.
            callback_on_step_end: called after each patch with the pipeline, the patch's index, the number of patches
                and a dict with the `codes` so far [B, bits, h, w], 0 where not generated yet. Codes in the dict that
                it returns take their place: the model goes on from those of this patch, earlier patches change in the
                picture only.
            callback_on_step_end_tensor_inputs: what that dict holds: "codes", or "latents", diffusers' name for them.
            negative_prompt: what the picture is not to show, one for all prompts or one per prompt: guidance is then
                measured against it. Against a prompt without text when not given, or empty. Not used without guidance.
            latents: noise [B, bits, h, w], B = prompts x `num_images_per_prompt`, h and w the size in tokens: what the
                flow of each patch starts from. Drawn from `generator` when not given; so is the noise of the steps, in
                any case. These are no codes: the result of `output_type="latent"` is no noise.

        Raises:
            ValueError: for an argument out of range; the message names it.
        """
        # 1. Defaults and checks.
        height, width = self.value_or_default("size", height), self.value_or_default("size", width)
        num_inference_steps = self.value_or_default("num_inference_steps", num_inference_steps)
        guidance_scale = self.value_or_default("guidance_scale", guidance_scale)
        self.check_inputs(
            prompt,
            height,
            width,
            num_inference_steps,
            guidance_scale,
            num_images_per_prompt,
            generator,
            output_type,
            callback_on_step_end_tensor_inputs,
            negative_prompt,
            latents,
        )

        # 2. Prompts to tokens, and codes to fill in.
        prompt_inputs = self.encode_prompt(prompt, height, width, num_images_per_prompt, negative_prompt)
        codes = self.prepare_latents(len(prompt_inputs["input_ids"]), height, width)

        # 3. Patch by patch.
        codes = self.generate_codes(
            codes,
            num_inference_steps,
            guidance_scale,
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            noise=latents,
            **prompt_inputs,
        )

        # 4. Codes to pictures.
        images = self.decode(codes, generator, output_type)
        self.maybe_free_model_hooks()
        return UniWeTokPipelineOutput(images=images) if return_dict else (images,)

    def encode_prompt(
        self,
        prompt: str | list[str],
        height: int,
        width: int,
        num_images_per_prompt: int = 1,
        negative_prompt: str | list[str] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Arguments of [`generate_codes`] for pictures of `height` x `width` pixels: `input_ids` and `attention_mask`
        [B, L], and what guidance is measured against: the prompt without text, `negative_input_ids` [1, L'], or, with
        a `negative_prompt`, `negative_input_ids` and `negative_attention_mask` [B, L'].

        Raises:
            ValueError: for a prompt with special tokens, or one that is too long.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else negative_prompt
        prompts = repeat_each(prompts, num_images_per_prompt)
        inputs, negative = self.processor.generation_inputs(prompts, height, width)
        self.check_length("prompt", inputs["input_ids"], height, width)
        result = {
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"],
            "negative_input_ids": negative["input_ids"],
        }
        if negatives is not None:
            negatives = repeat_each(negatives, num_images_per_prompt)
            worded, _ = self.processor.generation_inputs(negatives, height, width, argument="negative_prompt")
            rows = zip(worded["input_ids"][:, None], worded["attention_mask"][:, None], strict=True)
            plain = negative["input_ids"], negative["attention_mask"]
            rows = [row if words.strip() else plain for words, row in zip(negatives, rows, strict=True)]
            ids, mask = left_pad_rows(rows, self.processor.tokenizer.pad_token_id or 0)
            self.check_length("negative_prompt", ids, height, width)
            result |= {"negative_input_ids": ids, "negative_attention_mask": mask}
        return {name: tensor.to(self._execution_device) for name, tensor in result.items()}


__all__ = ["UniWeTokPipeline"]
