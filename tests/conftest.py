"""Fixtures of all tests. The models are the real classes at a tiny size, on `UNIWETOK_TEST_DEVICE` (default: cpu)."""

import asyncio
import contextlib
import os
import signal

from hub_server import HOME, HUB, HubServer
from leaks import left_since, running


# Read when the Hugging Face libraries are imported: no test may reach the real Hub, or use a person's token and cache.
# Where the fixture `hub` lifts the offline mode, the Hub is a server of our own.
os.environ["HF_ENDPOINT"] = HUB.url
os.environ["HF_HOME"] = HOME.name
os.environ["HF_HUB_CACHE"] = f"{HOME.name}/hub"
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_TOKEN"] = ""
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime keeps a data base of its use

from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from accelerate.state import AcceleratorState

from uniwetok_hf.modeling.configuration_uniwetok import UniWeTokConfig
from uniwetok_hf.modeling.modeling_uniwetok import UniWeTokModel


# A shell makes its background jobs deaf to Ctrl-C, and the commands that they start: tests interrupt some of these.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tiny models gain nothing from a second thread, and lose much when another program wants the same core.
torch.set_num_threads(1)

TINY = {
    "num_bits": 16,
    "base_channels": 8,
    "channel_multipliers": [1, 1, 2],
    "num_res_blocks": 1,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_norm_groups": 4,
}


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of the files that tests read."""
    return Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module", autouse=True)
def accelerate_forgets() -> Iterator[None]:
    """Accelerate keeps the precision and the device of a process' first training for all that follow; here every file
    of tests begins without."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(accelerate_forgets, request) -> Iterator[None]:
    """A file of tests leaves no thread, no process and no open file behind."""
    before = running()
    yield
    with contextlib.suppress(RuntimeError):  # gradio makes an event loop and leaves it to a later `asyncio.run`
        asyncio.get_event_loop_policy().get_event_loop().close()
    asyncio.set_event_loop_policy(None)
    if left := left_since(before):
        pytest.fail(f"{request.node.name} left behind: {', '.join(sorted(left))}", pytrace=False)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[HubServer]:
    """An empty Hub with an empty cache; the libraries of this process reach it with the token `hf_ada`, who may write
    to `ada` and `org`. `tests/hub_server.py` says what it can do."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    huggingface_hub.close_session()  # connections that remember the offline mode, or a server that was stopped
    HUB.clear()
    HUB.start()
    yield HUB
    HUB.stop()
    huggingface_hub.close_session()


@pytest.fixture
def device() -> torch.device:
    return torch.device(os.environ.get("UNIWETOK_TEST_DEVICE", "cpu"))


@pytest.fixture
def make_config() -> Callable[..., UniWeTokConfig]:
    """`make_config(**fields)`: the tiny config, stride 4 and 16 bits, with other fields where given."""
    return lambda **fields: UniWeTokConfig(**TINY | fields)


@pytest.fixture
def make_model(make_config, device) -> Callable[..., UniWeTokModel]:
    """`make_model(seed=0, **fields)`: a tiny model in eval mode whose every parameter is random.

    A new model would hide parameters: the adaptive norms start with zeros, the other norms with ones.
    """

    def make(seed: int = 0, **fields) -> UniWeTokModel:
        generator = torch.Generator().manual_seed(seed)
        model = UniWeTokModel(make_config(**fields)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                values = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim > 1:
                    parameter.copy_(values / parameter[0].numel() ** 0.5)
                else:
                    starts_at_one = name.endswith("weight") or name.endswith("gain.bias")
                    parameter.copy_(starts_at_one + 0.1 * values)
        return model.to(device)

    return make


@pytest.fixture
def tiny_config(make_config) -> UniWeTokConfig:
    return make_config()


@pytest.fixture
def tiny_model(make_model) -> UniWeTokModel:
    return make_model()


@pytest.fixture
def make_pictures(device) -> Callable[..., torch.Tensor]:
    """`make_pictures(*shape, seed=0)`: uniform values in [-1, 1]."""

    def make(*shape: int, seed: int = 0) -> torch.Tensor:
        return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1).to(device)

    return make
