# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""All outputs of a model, computed by the classes that it was loaded into.

`test_remote_code.py` imports [`compute`] for this package's classes, and runs this file in an environment that has
transformers and diffusers and not this package, for those of the revision `with-code`.
"""

import copy
import json
import sys
from pathlib import Path


def compute(vision, image_processor, mllm, processor, pipe, edit) -> dict:
    """Tensors that must be equal for two ways of loading the same weights.

    Models are copied first: weights that lie in memory as they did in their file are not aligned, and torch then sums
    in another order.
    """
    import torch
    from PIL import Image

    vision, mllm = copy.deepcopy(vision), copy.deepcopy(mllm)
    for one in (pipe, edit):
        one.set_progress_bar_config(disable=True)
        one.mllm = copy.deepcopy(one.mllm)

    def seeded():
        return torch.Generator().manual_seed(0)

    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    inputs = image_processor(picture, return_tensors="pt")
    question = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "what?"}]}]
    asked = processor.apply_chat_template(question, add_generation_prompt=True, tokenize=True, return_dict=True)
    with torch.no_grad():
        codes = vision.encode(inputs["pixel_values"]).codes
        sample = vision.decode(codes, generator=seeded()).sample
        answer = mllm.generate(**asked, max_new_tokens=8, do_sample=False)
        logits = mllm(**{name: asked[name] for name in ("input_ids", "attention_mask", "pixel_values")}).logits
    results = {"codes": codes, "sample": sample, "answer": answer, "logits": logits}
    for kind in ("latent", "pt"):
        results[f"generated {kind}"] = pipe("a cat", output_type=kind, generator=seeded()).images
        results[f"edited {kind}"] = edit(picture, "red", output_type=kind, generator=seeded()).images
    return {name: tensor.contiguous() for name, tensor in results.items()}


def compute_classes(pipe) -> dict:
    """The same of a class-to-image pipeline."""
    import torch

    pipe.set_progress_bar_config(disable=True)
    pipe.transformer, pipe.vision_model = copy.deepcopy(pipe.transformer), copy.deepcopy(pipe.vision_model)
    generators = {kind: torch.Generator().manual_seed(0) for kind in ("latent", "pt")}
    return {kind: pipe("otter", output_type=kind, generator=one).images for kind, one in generators.items()}


def main(packages: str, output: str):
    """Loads by id with every Auto class and with `DiffusionPipeline`; saves the results."""
    sys.path.append(packages)  # and not by `site`, which would find this package, installed for development
    import importlib.util

    import torch
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download
    from safetensors.torch import save_file
    from transformers import (
        AutoImageProcessor,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
    )

    torch.set_num_threads(1)
    if importlib.util.find_spec("uniwetok_hf") is not None:
        raise RuntimeError("this environment has the package")

    with_code = {"revision": "with-code", "trust_remote_code": True}
    untrusted = {
        "AutoModel of main": lambda: AutoModel.from_pretrained("org/vision"),
        "AutoModel": lambda: AutoModel.from_pretrained("org/vision", revision="with-code"),
        "AutoProcessor": lambda: AutoProcessor.from_pretrained("org/mllm", revision="with-code"),
        "DiffusionPipeline": lambda: DiffusionPipeline.from_pretrained("org/pipe", revision="with-code"),
    }
    asks = {}
    for name, load in untrusted.items():
        try:
            load()
        except ValueError as error:
            asks[name] = "trust_remote_code" in str(error)

    # The pipeline first: what it loads is found without what the Auto classes would have registered.
    pipe = DiffusionPipeline.from_pretrained("org/pipe", **with_code)
    edit = DiffusionPipeline.from_pretrained("org/pipe", custom_pipeline="pipeline_uniwetok_edit", **with_code)
    edit_code = hf_hub_download("org/pipe", "pipeline_uniwetok_edit.py", revision="with-code")
    same_parts = DiffusionPipeline.from_pipe(pipe, custom_pipeline=edit_code, trust_remote_code=True)
    vision = AutoModel.from_pretrained("org/vision", **with_code)
    image_processor = AutoImageProcessor.from_pretrained("org/vision", **with_code)
    mllm = AutoModelForCausalLM.from_pretrained("org/mllm", **with_code)
    chat = AutoModelForImageTextToText.from_pretrained("org/mllm", **with_code)
    base = AutoModel.from_pretrained("org/mllm", **with_code)
    processor = AutoProcessor.from_pretrained("org/mllm", **with_code)
    inner_image_processor = AutoImageProcessor.from_pretrained("org/mllm", **with_code)
    inner = AutoModelForCausalLM.from_pretrained("org/pipe", subfolder="mllm", **with_code)
    inner_processor = AutoProcessor.from_pretrained("org/pipe", subfolder="processor", **with_code)
    loaded = [pipe, edit, same_parts, vision, image_processor, mllm, chat, base, processor, inner_image_processor]
    loaded += [inner, inner_processor]
    classes = DiffusionPipeline.from_pretrained("org/classes", **with_code)
    loaded += [classes, AutoModel.from_pretrained("org/classes", subfolder="transformer", **with_code)]
    save_file(compute_classes(classes), f"{output}/classes.safetensors")
    save_file(compute(vision, image_processor, mllm, processor, pipe, edit), f"{output}/apart.safetensors")
    whole = compute(inner.vision_model, inner_image_processor, chat, inner_processor, pipe, same_parts)
    save_file(whole, f"{output}/inner.safetensors")
    report = {
        "asks for trust": asks,
        "loaded": [type(part).__name__ for part in loaded],
        "has the package": "uniwetok_hf" in sys.modules,
    }
    Path(output, "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
