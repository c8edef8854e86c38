# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Makes `runs/emoji_mllm_begun/pipeline` in the current folder, from which the finetune goes on: the embedded pipeline
with the language model of `language_model.safetensors`. Their image tokenizer and vocabulary are the same."""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from uniwetok_hf import embedded_path


pipeline = Path("runs/emoji_mllm_begun/pipeline")
shutil.copytree(embedded_path("uniwetok-emoji"), pipeline)
weights = pipeline / "mllm" / "model.safetensors"
trained = load_file(Path(__file__).with_name("language_model.safetensors"))
save_file(load_file(weights) | trained, weights, metadata={"format": "pt"})
