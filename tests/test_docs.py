"""The Python of the pages that other tests don't run, as a reader would paste it: page by page, in an empty folder
with a photograph. The messages of the troubleshooting page are those of the package."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import torch
from markdown_blocks import blocks
from PIL import Image
from safetensors.torch import load_file

from uniwetok_hf import embedded_path
from uniwetok_hf.cli.main import build_parser, main
from uniwetok_hf.training.config import find_config


ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# Messages of other libraries on the troubleshooting page.
OTHERS = {
    "mllm/uniwetok_hf.py as defined in model_index.json does not exist",
    "... is not one of the libraries Diffusers can load components from",
    "no file named model.safetensors",
    "no file named model_index.json",
    "does not recognize this architecture",
    "Unrecognized model in ... Should have a model_type key in its config.json",
    "Cannot find empty port",
    "operator torchvision::nms does not exist",
}


@pytest.mark.filterwarnings("ignore:No JSON tells the attention heads of ae.ckpt")
@pytest.mark.parametrize("page", ["index", "concepts", "conversation", "conversion"])
def test_page(page, tmp_path, monkeypatch, fixtures, capsys):
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").resize((100, 75)).convert("RGB").save("photo.jpg")
    torch.save({"state_dict": load_file(fixtures / "golden" / "tokenizer_uniwetok" / "ae.safetensors")}, "ae.ckpt")
    codes = [
        code for language, code in blocks((DOCS / f"{page}.md").read_text(encoding="utf-8")) if language == "python"
    ]
    assert codes
    names = {}
    for code in codes:
        exec(compile(code, f"{page}.md", "exec"), names)


PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "CONTRIBUTING.md", embedded_path("uniwetok-emoji") / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_commands_can_be_parsed(page):
    """Commands of the package, with their configs; of scripts only that there is such a file."""
    shell = [code for language, code in blocks(page.read_text(encoding="utf-8")) if language in ("bash", "sh")]
    for line in "\n".join(shell).replace("\\\n", " ").splitlines():
        program, *argv = shlex.split(line, comments=True) or [""]
        if program == "python":
            assert (ROOT / argv[0]).is_file(), line
        if program == "uniwetok":
            args = build_parser().parse_args(argv)  # exits where it can't
            names = getattr(args, "config", None) or []
            for name in [names] if isinstance(names, str) else names:
                assert name.endswith(".yaml") or find_config(name)


@pytest.mark.slow
def test_a_try_of_both_trainings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "training.md").read_text(encoding="utf-8").split("## A try in a few minutes")[1]
    commands = blocks(text)[0][1].splitlines()
    assert len(commands) == 4
    for command in commands:
        assert main([*shlex.split(command)[1:], *(["--set", "max_train_steps=2"] if "train" in command else [])]) == 0
    assert Path("runs/small_uniwetok/model").is_dir() and Path("runs/small_mllm/pipeline").is_dir()


def strings_of(source: str) -> list[str]:
    """The string literals of a module without backticks; what an f-string fills in is a line break."""
    strings = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            strings.append("".join(part.value if isinstance(part, ast.Constant) else "\n" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings.append(node.value)
    return [text.replace("`", "") for text in strings]


def test_messages_of_the_troubleshooting_page():
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    bold = [re.sub(r"\s+", " ", match) for match in re.findall(r"\*\*(.+?)\*\*", text, re.DOTALL)]
    messages = {match[1] for part in bold if (match := re.fullmatch(r"`([^`]+)`", part))}
    assert messages > OTHERS
    files = [strings_of(path.read_text(encoding="utf-8")) for path in (ROOT / "src").rglob("*.py")]
    for message in sorted(messages - OTHERS):
        pieces = [piece.strip() for piece in message.split("...") if piece.strip()]
        found = any(all(any(piece in text for text in strings) for piece in pieces) for strings in files)
        assert found, f"no message of the package is {message!r}"
