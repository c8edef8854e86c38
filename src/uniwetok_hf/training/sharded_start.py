# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The start of a training whose weights are spread over processes (`sharding.py`): one process loads them."""

from collections.abc import Iterable

from accelerate import Accelerator, init_empty_weights
from accelerate.utils import broadcast_object_list

from ..data.encoded import encoder_fingerprint
from ..modeling.modeling_uniwetok_mllm import UniWeTokForCausalLM
from ..pipelines import UniWeTokPipeline
from .agreement import sendable
from .start import pipeline_defaults, start_pipeline


def start_sharded(config, texts: Iterable[str], accelerator: Accelerator) -> tuple[UniWeTokPipeline, str]:
    """[`start_pipeline`] for a model whose weights will be sharded, and the fingerprint of its image tokenizer. Only
    the first process loads the weights; the others get the same pipeline with a model on the meta device. All
    processes must call it.

    Raises:
        ValueError: on all processes, as [`start_pipeline`] does.
    """
    pipeline, sent = None, [None]
    if accelerator.is_main_process:
        try:
            pipeline = start_pipeline(config, texts)
            sent = [(parts_without_weights(pipeline), encoder_fingerprint(pipeline.mllm.vision_model))]
        except Exception as error:
            sent = [sendable(error)]
    received = broadcast_object_list(sent)[0]
    if isinstance(received, Exception):
        raise received
    parts, fingerprint = received
    return pipeline or pipeline_without_weights(*parts), fingerprint


def parts_without_weights(pipeline: UniWeTokPipeline) -> tuple:
    """The arguments of [`pipeline_without_weights`], which can be sent to another process."""
    mllm = pipeline.mllm
    return pipeline.processor, mllm.config, mllm.generation_config, pipeline.scheduler, pipeline_defaults(pipeline)


def pipeline_without_weights(processor, config, generation_config, scheduler, defaults: dict) -> UniWeTokPipeline:
    """The pipeline of [`parts_without_weights`] with a model on the meta device; only its buffers are there."""
    with init_empty_weights(include_buffers=False):
        mllm = UniWeTokForCausalLM(config)
    mllm.tie_weights()  # each was made anew
    mllm.generation_config = generation_config
    return UniWeTokPipeline(processor, mllm, scheduler, **defaults)
