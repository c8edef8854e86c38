"""The Python of the pages that other tests don't run, as a reader would paste it: page by page, in an empty folder
with a photograph. The messages of the troubleshooting page are those of the package."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from markdown_blocks import blocks
from PIL import Image
from safetensors.torch import load_file
from torch.distributed import run as torchrun

from uniwetok_hf import embedded_path
from uniwetok_hf.cli.main import build_parser, main
from uniwetok_hf.training.config import CONFIGS, find_config


ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# Messages of other libraries on the troubleshooting page.
OTHERS = {
    "module diffusers has no attribute UniWeTokPipeline",
    "mllm/uniwetok_hf.py as defined in model_index.json does not exist",
    "AutoPipeline can't find a pipeline linked to UniWeTokPipeline",
    "... is not one of the libraries Diffusers can load components from",
    "no file named model.safetensors",
    "no file named model_index.json",
    "does not recognize this architecture",
    "Unrecognized model in ... Should have a model_type key in its config.json",
    "Cannot find empty port",
    "operator torchvision::nms does not exist",
}


@pytest.mark.filterwarnings("ignore:No JSON tells the attention heads of ae.ckpt")
@pytest.mark.parametrize("page", ["index", "comfyui", "concepts", "conversation", "conversion", "trl", "vllm"])
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


def commands_of(line: str) -> Iterator[list[str]]:
    """The words of a command, and of those that `bash -c` runs in it, without the variables that are set for it.
    Numbers from the environment are 1."""
    words = shlex.split(line, comments=True)
    if "bash" in words and "-c" in words:
        yield from commands_of(words[words.index("-c") + 1])
    while words and (words[0] == "exec" or re.match(r"\w+=", words[0])):
        words = words[1:]
    yield [re.sub(r"^\$\w+$", "1", word) for word in words] or [""]


def check_command(words: list[str]) -> None:
    """Of the package, with its configs; of launchers, with what they launch of it; of scripts only that there is such
    a file."""
    program, *argv = words
    if program == "python" and argv[0] == "-c":
        compile(argv[1], "-c", "exec")
    elif program == "python":
        assert (ROOT / argv[0]).is_file(), words
    if program in ("torchrun", "accelerate"):
        launcher = torchrun.get_args_parser() if program == "torchrun" else launch_command_parser()
        args = launcher.parse_args(argv if program == "torchrun" else argv[1:])
        assert args.module, words
        if args.training_script == "uniwetok_hf":
            check_command(["uniwetok", *args.training_script_args])
    if program == "uniwetok":
        args = build_parser().parse_args(argv)  # exits where it can't
        names = getattr(args, "config", None) or []
        for name in [names] if isinstance(names, str) else names:
            assert name.endswith(".yaml") or find_config(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_commands_can_be_parsed(page):
    shell = [code for language, code in blocks(page.read_text(encoding="utf-8")) if language in ("bash", "sh")]
    for line in "\n".join(shell).replace("\\\n", " ").splitlines():
        for words in commands_of(line):
            check_command(words)


def test_the_job_of_kubernetes_can_be_read():
    page = (DOCS / "cluster.md").read_text(encoding="utf-8")
    [manifest] = [code for language, code in blocks(page) if language == "yaml"]
    service, job = yaml.safe_load_all(manifest)
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    [launch] = commands_of(container["args"][0])
    check_command(launch)
    nodes = launch[launch.index("--nnodes") + 1]
    assert int(nodes) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert f"{job['metadata']['name']}-0.{pod['subdomain']}" in launch
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_variables_of_fsdp_are_those_of_its_file():
    page = (DOCS / "cluster.md").read_text(encoding="utf-8")
    named = dict(re.findall(r"export ((?:ACCELERATE|FSDP)_\w+)=(\w+)", page))
    options = launch_command_parser().parse_args(["--config_file", str(CONFIGS / "accelerate" / "fsdp.yaml"), "x.py"])
    with pytest.MonkeyPatch.context() as patch:  # OMP_NUM_THREADS would stay
        patch.setenv("OMP_NUM_THREADS", "1")
        launched = prepare_multi_gpu_env(_validate_launch_command(options)[0])
    assert named and named.items() <= launched.items()
    told = yaml.safe_load((CONFIGS / "accelerate" / "fsdp.yaml").read_text(encoding="utf-8"))["fsdp_config"]
    assert {name.upper() for name in told} <= named.keys()


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
