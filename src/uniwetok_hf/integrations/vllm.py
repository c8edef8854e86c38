# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The language model in vLLM, which finds [`register`] by an entry point of this package (docs/vllm.md).

vLLM has nothing of ours in it: its transformers backend runs [`UniWeTokMLLMModel`], and needs to be told that the
architecture in `config.json` is one for it.
"""


def register() -> None:
    """Called by vLLM, and by vLLM-Omni, in each of their processes, before a model is loaded. The Auto classes are
    registered by the import of this package, which came before."""
    from vllm import ModelRegistry

    backend = "vllm.model_executor.models.transformers:TransformersMultiModalForCausalLM"
    ModelRegistry.register_model("UniWeTokForCausalLM", backend)
