"""diffusers pipelines. Imported when a pipeline is first used, since diffusers is slow to import."""

from ..hub import add_push_to_hub
from ..quiet import without_warning


# Of pipelines that are not ours, and on CPUs nobody should install torchvision for them; and of weights that an older
# torchao quantized.
with (
    without_warning("transformers.utils.import_utils", "requires torchvision"),
    without_warning("diffusers.quantizers.torchao.torchao_quantizer", "Unable to import `torchao`"),
):
    import diffusers
    from diffusers.pipelines import auto_pipeline, pipeline_loading_utils

from .conversation import UniWeTokConversation, UniWeTokReply
from .pipeline_output import UniWeTokPipelineOutput
from .pipeline_uniwetok import UniWeTokPipeline
from .pipeline_uniwetok_edit import UniWeTokEditPipeline


# With this, `model_index.json` names our components `["uniwetok_hf", "UniWeTokForCausalLM"]`: they load by Hub id
# without trusting remote code, and modules can move without breaking saved pipelines. The top level exposes the
# library base classes that diffusers looks for beside them.
pipeline_loading_utils.LOADABLE_CLASSES.setdefault("uniwetok_hf", {})
# And with this, `AutoPipelineForText2Image` and `AutoPipelineForImage2Image` know which of the two is theirs.
auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.setdefault("uniwetok", UniWeTokPipeline)
auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.setdefault("uniwetok", UniWeTokEditPipeline)
# `DiffusionPipeline.from_pretrained` looks for the class that a folder names among diffusers' own, and nowhere else.
for pipeline_class in (UniWeTokPipeline, UniWeTokEditPipeline):
    if not hasattr(diffusers, pipeline_class.__name__):
        setattr(diffusers, pipeline_class.__name__, pipeline_class)
add_push_to_hub(UniWeTokPipeline, UniWeTokEditPipeline)

__all__ = [
    "UniWeTokConversation",
    "UniWeTokEditPipeline",
    "UniWeTokPipeline",
    "UniWeTokPipelineOutput",
    "UniWeTokReply",
]
