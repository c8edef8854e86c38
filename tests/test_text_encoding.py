"""Text files are read and written as UTF-8, whatever the locale of the machine: no call leaves the encoding open."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FILES = [
    path for part in ("src", "examples") for path in sorted((ROOT / part).rglob("*.py")) if "tests" not in path.parts
]
# Opens no text: pictures, archives, tensors, sockets, file descriptors.
OTHERS = {"Image", "PILImage", "Picture", "archive", "tarfile", "zipfile", "fsspec", "gzip", "os", "webbrowser"}
OTHERS |= {"request"}


def without_encoding(source: str) -> list[int]:
    """Lines with a call of `open`, `read_text` or `write_text` that reads or writes text in the locale's encoding."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        owner = getattr(getattr(function, "value", None), "id", "")  # of `owner.name(...)`
        if name not in ("open", "read_text", "write_text", "fdopen", "NamedTemporaryFile") or owner in OTHERS:
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        is_method = name == "open" and isinstance(function, ast.Attribute) and owner != "io"
        place = 0 if is_method or name == "NamedTemporaryFile" else 1
        mode = given.get("mode", node.args[place] if len(node.args) > place else None)
        modes = [value.value for value in ast.walk(mode) if isinstance(value, ast.Constant)] if mode else []
        is_binary = name not in ("read_text", "write_text") and any("b" in str(value) for value in modes)
        position = {"read_text": 0, "write_text": 1}.get(name, 9)
        if not is_binary and "encoding" not in given and len(node.args) <= position:
            found.append(node.lineno)
    return found


def test_calls_without_an_encoding_are_found():
    bad = ["open(p)", "open(p, 'a')", "p.open()", "p.read_text()", "p.write_text(x)", "open(p, mode='w')"]
    bad += ["io.open(p)", "(a / b).open('w')"]
    good = ["open(p, 'rb')", "p.open('rb')", "Image.open(p)", "p.read_text(encoding='utf-8')", "p.read_bytes()"]
    good += ["open(p, 'w', encoding='utf-8')", "p.read_text('utf-8')", "p.write_text(x, 'utf-8')", "tarfile.open(p)"]
    assert [len(without_encoding(line)) for line in bad] == [1] * len(bad)
    assert [len(without_encoding(line)) for line in good] == [0] * len(good)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_have_an_encoding(path):
    assert without_encoding(path.read_text(encoding="utf-8")) == []
