"""diffusers pipelines. Imported when a pipeline is first used, since diffusers is slow to import."""

from ..hub import add_push_to_hub
from ..quiet import without_warning


# Both warn of what nothing here uses: pipelines of diffusers that need torchvision, and weights quantized by an older
# torchao.
with (
    without_warning("transformers.utils.import_utils", "requires torchvision"),
    without_warning("diffusers.quantizers.torchao.torchao_quantizer", "Unable to import `torchao`"),
):
    import diffusers
    from diffusers.pipelines import auto_pipeline, pipeline_loading_utils

from .conversation import UniWeTokConversation, UniWeTokReply
from .image_intake import EncodedImage
from .pipeline_output import UniWeTokPipelineOutput
from .pipeline_uniwetok import UniWeTokPipeline
from .pipeline_uniwetok_class_to_image import UniWeTokClassToImagePipeline
from .pipeline_uniwetok_edit import UniWeTokEditPipeline


# diffusers has no function to register another package's pipelines, so three of its tables get entries of ours; none
# of its own is changed.
# 1. Components: `model_index.json` names them `["uniwetok_hf", "UniWeTokForCausalLM"]`. They load by Hub id without
#    trusting remote code, and modules can move without breaking saved pipelines. The top level of the package exposes
#    the libraries' base classes that diffusers looks for beside them.
pipeline_loading_utils.LOADABLE_CLASSES.setdefault("uniwetok_hf", {})
# 2. Tasks: `AutoPipelineForText2Image` and `AutoPipelineForImage2Image` choose between the two pipelines.
auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.setdefault("uniwetok", UniWeTokPipeline)  # ty: ignore[no-matching-overload]
auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.setdefault("uniwetok", UniWeTokEditPipeline)  # ty: ignore[no-matching-overload]
# 3. Pipelines: `DiffusionPipeline.from_pretrained` looks for the class that `model_index.json` names in the namespace
#    of diffusers, and nowhere else.
for pipeline_class in (UniWeTokPipeline, UniWeTokEditPipeline, UniWeTokClassToImagePipeline):
    if not hasattr(diffusers, pipeline_class.__name__):
        setattr(diffusers, pipeline_class.__name__, pipeline_class)
add_push_to_hub(UniWeTokPipeline, UniWeTokEditPipeline, UniWeTokClassToImagePipeline)

__all__ = [
    "EncodedImage",
    "UniWeTokClassToImagePipeline",
    "UniWeTokConversation",
    "UniWeTokEditPipeline",
    "UniWeTokPipeline",
    "UniWeTokPipelineOutput",
    "UniWeTokReply",
]
