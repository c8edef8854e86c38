"""The curl lines and the Python of docs/serving.md, in order, in an empty folder, against a server of the embedded
model; and that its tables name what there is."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from markdown_blocks import blocks
from PIL import Image

from uniwetok_hf import UniWeTokPipeline, embedded_path


pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("openai", reason="needs the extra `dev`")

from running_server import running_server  # noqa: E402

from uniwetok_hf.serving.engine import LocalEngine  # noqa: E402
from uniwetok_hf.serving.errors import ERRORS  # noqa: E402
from uniwetok_hf.serving.formats import ChatBody, EditBody, GenerationBody  # noqa: E402
from uniwetok_hf.serving.metrics import ServerMetrics  # noqa: E402


PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
HERE = "http://127.0.0.1:8000"  # the server of the page


@pytest.fixture(scope="module")
def pipe():
    return UniWeTokPipeline.from_pretrained(embedded_path("uniwetok-emoji"), dtype=torch.float32)


@pytest.fixture(scope="module")
def address(pipe):
    metrics = ServerMetrics()
    engine = LocalEngine(pipe, "uniwetok-emoji", on_batch=metrics.observe_batch)
    with running_server(engine, metrics=metrics) as (address, _):
        yield address


@pytest.fixture(scope="module")
def heart(pipe, address):  # after the server has taken the pipeline, whose progress bars it turns off
    """The first picture of the page, alone."""
    return pipe("a fluent flat emoji of blue heart", generator=torch.Generator().manual_seed(0)).images[0]


def opened(encoded: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(encoded.split(",")[-1]))).convert("RGB")


def read(path: Path) -> Image.Image:
    return opened(base64.b64encode(path.read_bytes()).decode())


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(address, heart, tmp_path):
    lines = [code for language, code in blocks(PAGE) if language == "bash" and "curl" in code]
    assert len(lines) == 4
    printed = ""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])  # Debian's has no `python`
    for code in lines:
        assert HERE in code
        command = ["bash", "-euo", "pipefail", "-c", code.replace(HERE, address)]
        options = {"cwd": tmp_path, "env": os.environ | {"PATH": path}, "capture_output": True, "text": True}
        printed += subprocess.run(command, check=True, **options).stdout
    assert '"id":"uniwetok-emoji"' in printed and '"status":"ok"' in printed
    assert read(tmp_path / "heart.png") == heart
    [edited] = json.loads((tmp_path / "edited.json").read_text())["data"]
    assert opened(edited["b64_json"]).size == (128, 128) and edited["seed"] == 0
    [choice] = json.loads((tmp_path / "drawn.json").read_text())["choices"]
    assert len(choice["message"]["images"]) == 1
    events = (tmp_path / "stream.txt").read_text().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and len(events) > 4
    assert "uniwetok_requests_total" in (tmp_path / "metrics.txt").read_text()


def test_python(address, heart, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    codes = [code for language, code in blocks(PAGE) if language == "python"]
    assert len(codes) == 5 and codes[0].count(HERE) == 1
    names = {}
    try:
        for code in codes:
            exec(compile(code.replace(HERE, address), "serving.md", "exec"), names)
    finally:
        names["client"].close()
    assert read(tmp_path / "heart-0.png") == heart
    assert read(tmp_path / "heart-1.png") != heart
    assert opened(names["url"]).size == (128, 128)
    assert names["answer"].choices[0].message.content
    assert [image["image_url"]["url"] for image in names["images"]] == [names["url"]]  # of the same seed
    described, answered, *_ = capsys.readouterr().out.splitlines()
    assert described.endswith(" 0") and "heart" in answered


def test_the_table_of_fields_is_complete():
    section = PAGE.split("## Fields")[1].split("## Errors")[0]
    rows = re.findall(r"^\| (`.+?) \| (.+?) \|", section, re.MULTILINE)
    told = {where: set() for where in ("generations", "edits", "chat")}
    for names, places in rows:
        for where in told if places == "all" else places.split(", "):
            told[where] |= set(re.findall(r"`(\w+)`", names))
    told["edits"].remove("image")
    refused = (
        "tools",
        "functions",
        "function_call",
        "partial_images",
        "audio",
        "logit_bias",
        "logprobs",
        "prediction",
        "stop",
        "top_logprobs",
        "mask",
    )
    fixed = ("frequency_penalty", "presence_penalty", "response_format", "output_format", "web_search_options")
    for where, body in {"generations": GenerationBody, "edits": EditBody, "chat": ChatBody}.items():
        fields = {name for name, field in body.model_fields.items() if not field.exclude}
        left_out = {*refused, *fixed, *({"n"} if where == "chat" else {"stream"})}
        assert fields - left_out == told[where]


def test_the_table_of_errors_is_complete():
    section = PAGE.split("## Errors")[1].split("## Limits")[0]
    told = {(int(status), code) for status, code in re.findall(r"^\| (\d+) \| `(\w+)`", section, re.MULTILINE)}
    assert told == {(status, code) for status, _, code in ERRORS.values()} | {
        (401, "invalid_api_key"),
        (408, "timeout"),
        (413, "request_too_large"),
    }
