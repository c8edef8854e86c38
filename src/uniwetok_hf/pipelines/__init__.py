"""diffusers pipelines. Imported when a pipeline is first used, since diffusers is slow to import."""

from ..diffusers_registration import choose_pipelines
from ..hub import add_push_to_hub
from ..quiet import without_warning


# It warns of weights quantized by an older torchao, which nothing here reads.
with without_warning("diffusers.quantizers.torchao.torchao_quantizer", "Unable to import `torchao`"):
    from diffusers import DiffusionPipeline  # noqa: F401

from .conversation import UniWeTokConversation, UniWeTokReply
from .image_intake import EncodedImage
from .pipeline_output import UniWeTokPipelineOutput
from .pipeline_uniwetok import UniWeTokPipeline
from .pipeline_uniwetok_class_to_image import UniWeTokClassToImagePipeline
from .pipeline_uniwetok_edit import UniWeTokEditPipeline


add_push_to_hub(UniWeTokPipeline, UniWeTokEditPipeline, UniWeTokClassToImagePipeline)
choose_pipelines()

__all__ = [
    "EncodedImage",
    "UniWeTokClassToImagePipeline",
    "UniWeTokConversation",
    "UniWeTokEditPipeline",
    "UniWeTokPipeline",
    "UniWeTokPipelineOutput",
    "UniWeTokReply",
]
