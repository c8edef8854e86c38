"""diffusers pipelines. Imported when a pipeline is first used, since diffusers is slow to import."""

from diffusers.pipelines import pipeline_loading_utils

from .conversation import UniWeTokConversation, UniWeTokReply
from .pipeline_output import UniWeTokPipelineOutput
from .pipeline_uniwetok import UniWeTokPipeline
from .pipeline_uniwetok_edit import UniWeTokEditPipeline


# With this, `model_index.json` names our components `["uniwetok_hf", "UniWeTokForCausalLM"]`: they load by Hub id
# without trusting remote code, and modules can move without breaking saved pipelines. The top level exposes the
# library base classes that diffusers looks for beside them.
pipeline_loading_utils.LOADABLE_CLASSES.setdefault("uniwetok_hf", {})

__all__ = [
    "UniWeTokConversation",
    "UniWeTokEditPipeline",
    "UniWeTokPipeline",
    "UniWeTokPipelineOutput",
    "UniWeTokReply",
]
