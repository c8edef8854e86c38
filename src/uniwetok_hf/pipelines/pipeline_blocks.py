# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Text-to-image as blocks of Modular Diffusers: prompt -> tokens, tokens -> codes, codes -> picture.

`ModularPipeline.from_pretrained` finds them for every folder of a [`UniWeTokPipeline`]. The blocks run the phases of
that pipeline and give what it gives; here is which inputs, components and defaults each of them has.
"""

from typing import Any

import torch
from diffusers.modular_pipelines.modular_pipeline import (
    ModularPipeline,
    ModularPipelineBlocks,
    PipelineState,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, ConfigSpec, InputParam, OutputParam

from ..modeling.modeling_uniwetok_mllm import UniWeTokForCausalLM
from ..modeling.processing_uniwetok import UniWeTokProcessor
from ..schedulers import BinaryFlowScheduler
from .pipeline_base import check_latents
from .pipeline_uniwetok import UniWeTokPipeline


# Defaults of the pipeline, which are saved with it. Those of edits are not used by these blocks.
DEFAULTS = {"default_size": 1024, "default_num_inference_steps": 50, "default_guidance_scale": 7.5}
SIZE = [InputParam.template("height"), InputParam.template("width")]


class UniWeTokModularPipeline(ModularPipeline):
    """What `ModularPipeline.from_pretrained` makes of a folder or Hub id of a [`UniWeTokPipeline`].

    Example:

    ```python
    >>> pipe = ModularPipeline.from_pretrained(uniwetok_hf.embedded_path())
    >>> pipe.load_components(dtype=torch.float32)
    >>> pipe(prompt="a red apple", generator=torch.Generator().manual_seed(0), output="images")[0].save("apple.png")
    ```
    """

    default_blocks_name = "UniWeTokBlocks"

    def as_pipeline(self) -> UniWeTokPipeline:
        """The ordinary pipeline of the same components and defaults."""
        defaults = {name: self.config[name] for name in DEFAULTS if name in self.config}
        return UniWeTokPipeline(self.processor, self.mllm, self.scheduler, **defaults)


class UniWeTokBlock(ModularPipelineBlocks):
    """What the blocks share: their components and defaults are those of the pipeline."""

    model_name = "uniwetok"

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [
            ComponentSpec("processor", UniWeTokProcessor),
            ComponentSpec("mllm", UniWeTokForCausalLM),
            ComponentSpec("scheduler", BinaryFlowScheduler),
        ]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        return [ConfigSpec(name, default) for name, default in DEFAULTS.items()]


class UniWeTokTextEncoderStep(UniWeTokBlock):
    """Prompts to tokens."""

    @property
    def description(self) -> str:
        return "Turns prompts into the tokens of conversations that end with the size of the picture."

    @property
    def inputs(self) -> list[InputParam]:
        names = ("prompt", "negative_prompt", "num_images_per_prompt")
        return [*(InputParam.template(name) for name in names), *SIZE]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("prompt_inputs", dict, "Arguments of `UniWeTokForCausalLM.generate_codes`.")]

    def __call__(self, components: UniWeTokModularPipeline, state: PipelineState):
        block: Any = self.get_block_state(state)
        pipe = components.as_pipeline()
        block.height = pipe.value_or_default("size", block.height)
        block.width = pipe.value_or_default("size", block.width)
        pipe.check_prompts(block.prompt, block.height, block.width, block.num_images_per_prompt, block.negative_prompt)
        block.prompt_inputs = pipe.encode_prompt(
            block.prompt, block.height, block.width, block.num_images_per_prompt, block.negative_prompt
        )
        self.set_block_state(state, block)
        return components, state


class UniWeTokGenerateStep(UniWeTokBlock):
    """Tokens to codes."""

    @property
    def description(self) -> str:
        return "Generates the codes of pictures, patch by patch."

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("prompt_inputs", dict, required=True, description="What the text encoder made."),
            *SIZE,
            InputParam.template("num_inference_steps", default=None),
            InputParam("guidance_scale", float, description="Weight of classifier-free guidance; 1 or less is none."),
            InputParam.template("latents"),
            InputParam.template("generator"),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("codes", torch.Tensor, "Codes [B, bits, h, w] of {-1, +1}.")]

    def __call__(self, components: UniWeTokModularPipeline, state: PipelineState):
        block: Any = self.get_block_state(state)
        pipe = components.as_pipeline()
        pipe.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        steps = pipe.value_or_default("num_inference_steps", block.num_inference_steps)
        guidance_scale = pipe.value_or_default("guidance_scale", block.guidance_scale)
        count = len(block.prompt_inputs["input_ids"])
        block.height = pipe.value_or_default("size", block.height)
        block.width = pipe.value_or_default("size", block.width)
        pipe.check_settings(steps, guidance_scale, block.generator, count)
        check_latents(block.latents, pipe.latents_shape(count, block.height, block.width))
        block.codes = pipe.generate_codes(
            pipe.prepare_latents(count, block.height, block.width),
            steps,
            guidance_scale,
            block.generator,
            noise=block.latents,
            **block.prompt_inputs,
        )
        self.set_block_state(state, block)
        return components, state

    def set_progress_bar_config(self, **kwargs) -> None:
        self._progress_bar_config = kwargs


class UniWeTokDecodeStep(UniWeTokBlock):
    """Codes to pictures."""

    @property
    def description(self) -> str:
        return "Decodes codes to pictures."

    @property
    def inputs(self) -> list[InputParam]:
        codes = InputParam("codes", torch.Tensor, required=True, description="Codes [B, bits, h, w] of {-1, +1}.")
        return [codes, InputParam.template("output_type"), InputParam.template("generator")]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam.template("images")]

    def __call__(self, components: UniWeTokModularPipeline, state: PipelineState):
        block: Any = self.get_block_state(state)
        block.images = components.as_pipeline().decode(block.codes, block.generator, block.output_type)
        self.set_block_state(state, block)
        return components, state


class UniWeTokBlocks(SequentialPipelineBlocks):
    """Prompts to pictures."""

    model_name = "uniwetok"
    block_classes = [UniWeTokTextEncoderStep, UniWeTokGenerateStep, UniWeTokDecodeStep]
    block_names = ["text_encoder", "generate", "decode"]

    @property
    def description(self) -> str:
        return "Text-to-image with the unified model of UniWeTok."

    @property
    def outputs(self) -> list[OutputParam]:  # ty: ignore[incompatible-property-override]  (theirs says names)
        return [OutputParam.template("images")]


__all__ = ["UniWeTokBlocks", "UniWeTokModularPipeline"]
