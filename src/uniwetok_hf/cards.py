# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Model cards: `model_card.md`, filled from a model's configuration and from what its maker says of it."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData


TEMPLATE = Path(__file__).parent / "model_card.md"


def model_card(
    model, model_id: str | None = None, license: str = "apache-2.0", datasets=None, **sections
) -> ModelCard:
    """The card of a [`UniWeTokModel`], a [`UniWeTokForCausalLM`] or a pipeline.

    Args:
        model: what the card is about; sizes and numbers of parameters are read from it.
        model_id: its name on the Hub, used in the examples.
        license: an SPDX name.
        datasets: names of the training sets.
        sections: texts of the template: `model_name`, `model_summary`, `training`, `evaluation`, `limitations`,
            `attributions`. What is not given says so in the card.
    """
    mllm = getattr(model, "mllm", model if hasattr(model, "image_head") else None)
    vision_model = mllm.vision_model if mllm is not None else model
    config = vision_model.config
    numbers = {
        "stride": f"{config.stride} x {config.stride} pixels",
        "num_bits": config.num_bits,
        "encoder_parameters": _count(vision_model.encoder),
        "decoder_parameters": _count(vision_model.decoder),
        "stored_dtype": str(vision_model.dtype).removeprefix("torch."),
    }
    if mllm is not None:
        numbers |= {
            "language_model_parameters": _count(mllm.model.language_model),
            "head_parameters": _count(mllm.image_head),
            "patch_size": mllm.config.patch_size,
        }
    data = ModelCardData(
        license=license,
        library_name="uniwetok-hf",
        pipeline_tag="text-to-image" if mllm is not None else "image-feature-extraction",
        tags=["uniwetok", "image-tokenizer", *(["text-to-image", "image-editing"] if mllm is not None else [])],
        datasets=datasets,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        is_pipeline=mllm is not None,
        model_id=model_id,
        **{"model_name": (model_id or "UniWeTok model").split("/")[-1], **numbers, **sections},
    )


def _count(module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"
