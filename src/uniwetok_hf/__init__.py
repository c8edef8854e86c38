# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""UniWeTok in the Hugging Face ecosystem: an image tokenizer of 128-bit binary tokens, and a language model that
reads, generates and edits images with them (arXiv 2602.14178).

Importing registers the Auto classes, and the pipelines with diffusers' loaders, whichever of the two is imported
first. Pipelines and the scheduler are imported when first used: they need diffusers.
"""

import importlib

from .quiet import without_warning


# Warnings of torchao about GPU kernels, when transformers imports it.
with (
    without_warning("torchao", "Failed to load"),
    without_warning("torch.utils._pytree", "is an Enum subclass"),
):
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoModelForPreTraining,
        AutoProcessor,
        ImageProcessingMixin,  # diffusers looks for these three base classes beside our components
        PreTrainedModel,
        ProcessorMixin,
    )

from .diffusers_registration import register_with_diffusers
from .embedded import embedded_path
from .hub import add_push_to_hub
from .modeling.codes_uniwetok import CodesFileError, SavedCodes, load_codes, pack_codes, save_codes, unpack_codes
from .modeling.configuration_uniwetok import UniWeTokConfig
from .modeling.configuration_uniwetok_class_to_image import UniWeTokClassToImageConfig
from .modeling.configuration_uniwetok_mllm import UniWeTokHeadConfig, UniWeTokMLLMConfig
from .modeling.image_processing_uniwetok import UniWeTokImageProcessor
from .modeling.modeling_uniwetok import UniWeTokModel
from .modeling.modeling_uniwetok_class_to_image import UniWeTokClassToImageModel
from .modeling.modeling_uniwetok_head import UniWeTokBinaryHead
from .modeling.modeling_uniwetok_mllm import UniWeTokForCausalLM, UniWeTokMLLMModel
from .modeling.processing_uniwetok import UniWeTokProcessor
from .version import __version__


AutoConfig.register("uniwetok", UniWeTokConfig)
AutoConfig.register("uniwetok_class_to_image", UniWeTokClassToImageConfig)
AutoConfig.register("uniwetok_head", UniWeTokHeadConfig)
AutoConfig.register("uniwetok_mllm", UniWeTokMLLMConfig)
AutoModel.register(UniWeTokConfig, UniWeTokModel)
AutoModel.register(UniWeTokClassToImageConfig, UniWeTokClassToImageModel)
AutoModel.register(UniWeTokHeadConfig, UniWeTokBinaryHead)
AutoModel.register(UniWeTokMLLMConfig, UniWeTokMLLMModel)
for auto_class in (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForPreTraining,
):
    auto_class.register(UniWeTokMLLMConfig, UniWeTokForCausalLM)
AutoProcessor.register(UniWeTokMLLMConfig, UniWeTokProcessor)  # the image processor's is in its file
add_push_to_hub(
    UniWeTokModel, UniWeTokForCausalLM, UniWeTokClassToImageModel, UniWeTokImageProcessor, UniWeTokProcessor
)

_LAZY = {
    "BinaryFlowScheduler": "uniwetok_hf.schedulers",
    "UniWeTokBlocks": "uniwetok_hf.pipelines.pipeline_blocks",
    "UniWeTokClassToImagePipeline": "uniwetok_hf.pipelines",
    "UniWeTokConversation": "uniwetok_hf.pipelines",
    "UniWeTokEditPipeline": "uniwetok_hf.pipelines",
    "UniWeTokModularPipeline": "uniwetok_hf.pipelines.pipeline_blocks",
    "UniWeTokPipeline": "uniwetok_hf.pipelines",
    "SchedulerMixin": "diffusers",
    "convert_checkpoint": "uniwetok_hf.conversion",
}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'uniwetok_hf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


register_with_diffusers()


__all__ = [
    "BinaryFlowScheduler",
    "CodesFileError",
    "ImageProcessingMixin",
    "PreTrainedModel",
    "ProcessorMixin",
    "SavedCodes",
    "SchedulerMixin",
    "UniWeTokBinaryHead",
    "UniWeTokBlocks",
    "UniWeTokClassToImageConfig",
    "UniWeTokClassToImageModel",
    "UniWeTokClassToImagePipeline",
    "UniWeTokConfig",
    "UniWeTokConversation",
    "UniWeTokEditPipeline",
    "UniWeTokForCausalLM",
    "UniWeTokHeadConfig",
    "UniWeTokImageProcessor",
    "UniWeTokMLLMConfig",
    "UniWeTokMLLMModel",
    "UniWeTokModel",
    "UniWeTokModularPipeline",
    "UniWeTokPipeline",
    "UniWeTokProcessor",
    "__version__",
    "convert_checkpoint",
    "embedded_path",
    "load_codes",
    "pack_codes",
    "save_codes",
    "unpack_codes",
]
