"""The entry point for vLLM. vLLM itself wants an environment of its own (docs/vllm.md): without it the second test is
skipped."""

import importlib
import re
from pathlib import Path

import pytest


SETUP = Path(__file__).parents[2] / "setup.py"


def test_the_entry_point_is_a_function_that_needs_no_vllm_to_be_found():
    [(module, name)] = re.findall(
        r'"vllm\.general_plugins": \["\w+ = ([\w.]+):(\w+)"\]', SETUP.read_text(encoding="utf-8")
    )
    assert callable(getattr(importlib.import_module(module), name))


def test_vllm_knows_the_architecture():
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed here, see docs/vllm.md")
    from uniwetok_hf.integrations.vllm import register

    register()
    register()  # vLLM may call it again
    assert "UniWeTokForCausalLM" in vllm.ModelRegistry.get_supported_archs()
