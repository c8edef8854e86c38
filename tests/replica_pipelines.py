"""Pipelines that replicas of a Ray load. A module of its own, because their processes import it by name."""

import os
import signal
from pathlib import Path

from tiny_models import build_tiny_pipeline


def load_tiny():
    return build_tiny_pipeline()


def load_mortal(others: Path):
    """A pipeline whose texts have no end, and whose process ends itself at the prompt "die". If the file `others` is
    there, its weights are others."""
    pipe = build_tiny_pipeline(seed=int(others.exists()))
    pipe.mllm.generation_config.sequence_bias = [[[pipe.processor.turn_end_token_id], -1000.0]]
    encode_prompt = pipe.encode_prompt

    def encode_or_die(prompt, *args, **kwargs):
        if prompt == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return encode_prompt(prompt, *args, **kwargs)

    pipe.encode_prompt = encode_or_die
    return pipe
