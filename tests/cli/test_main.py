"""The command as a whole: help, exit codes, and errors that nobody foresaw."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import torch

from uniwetok_hf.cli import describe
from uniwetok_hf.cli.main import build_parser, main, main_of_process
from uniwetok_hf.signals import Stopped


COMMANDS = ("demo", "app", "serve", "reconstruct", "encode", "decode", "generate", "edit", "describe", "convert")
COMMANDS += ("encode-dataset", "train", "plan", "export", "sample-classes", "evaluate", "benchmark", "push")


def help_of(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main([*argv, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_strange_arguments_are_told_with_the_usage_of_the_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "apple", "--seeds", "3"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "usage: uniwetok generate" in error and "unrecognized arguments: --seeds 3" in error


def test_help_lists_every_command(capsys):
    text = help_of(capsys)
    listed = [line.split()[0] for line in text.splitlines() if re.match(" {4}[a-z]", line)]
    assert listed == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_teaches(capsys, command):
    text = help_of(capsys, command)
    description = text.split("\n\n")[1].splitlines()
    assert len(description) == 2
    examples = text.split("examples:\n")[1].splitlines()
    assert len(examples) >= 2
    for example in examples:
        program, *argv = shlex.split(example)
        assert program == "uniwetok"
        run = build_parser().parse_args(argv).run.__name__
        assert argv[0] == command and run == f"run_{command.replace('-', '_')}"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "COMMAND"),
        (["paint"], "paint"),
        (["reconstruct"], "PICTURE"),
        (["reconstruct", "a.png", "--size", "64", "--longest-edge", "64"], "not allowed with"),
        (["reconstruct", "a.png", "--size", "-64"], "whole number of 1 or more"),
        (["generate", "a", "--seed", "-1"], "whole number of 0 or more"),
        (["generate", "a", "--seed", str(2**63)], "whole number of 0 or more"),
        (["generate", "a", "--guidance-scale", "nan"], "must be a number"),
        (["generate", "a", "--num-images", "0"], "whole number of 1 or more"),
        (["train", "mllm", "--config", "a.yaml", "--set", "steps"], "FIELD=VALUE"),
    ],
)
def test_usage_errors_exit_with_2(capsys, argv, words):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--help"], ["--size", "64"]])
@pytest.mark.parametrize(
    ("command", "script"),
    [
        ("data emoji", "emoji_data.py"),
        ("data faces-and-text", "faces_and_text.py"),
        ("data", "scripts"),
        ("train siglip", "train_siglip.py"),
        ("evaluate emoji", "evaluate_emoji.py"),
    ],
)
def test_commands_that_left_say_where_they_went(capsys, command, script, options):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), *options])
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out) == (2, "")
    (line,) = captured.err.splitlines()
    assert line.startswith(f"uniwetok: error: `uniwetok {command}` ")
    assert "examples/emoji" in line and script in line


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("uniwetok-hf ")


def test_unexpected_error_shows_where_it_came_from(uniwetok, monkeypatch):
    def stumble(args):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(describe, "run_describe", stumble)
    result = uniwetok("describe", "a.png")
    assert result.code == 1
    assert result.err[0].startswith("Traceback")
    assert "in stumble" in "\n".join(result.err)
    assert "ZeroDivisionError" in result.err[-1] and "report" in result.err[-1]


def test_interrupted_exits_with_130(uniwetok, monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(describe, "run_describe", interrupt)
    result = uniwetok("describe", "a.png")
    assert (result.code, result.err[-1]) == (130, "uniwetok: interrupted")


def test_an_interruption_says_what_was_kept(uniwetok, monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt("stopped after step 3")

    monkeypatch.setattr(describe, "run_describe", interrupt)
    result = uniwetok("describe", "a.png")
    assert (result.code, result.err[-1]) == (130, "uniwetok: stopped after step 3")


@pytest.mark.parametrize("error, code", [(None, 0), (Stopped("stopped"), 75), (ValueError("a bug"), 1)])
def test_a_process_leaves_the_others_at_its_end(monkeypatch, error, code):
    """Not after an error: the others may never come to their end."""

    def run(args):
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        if error:
            raise error

    monkeypatch.setattr(describe, "run_describe", run)
    monkeypatch.setattr(sys, "argv", ["uniwetok", "describe", "a.png"])
    try:
        assert main_of_process() == code
        assert torch.distributed.is_initialized() == (code == 1)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_output_that_cannot_be_written(fails, photo, vision_folder):
    assert fails("reconstruct", photo, "--model", vision_folder, "--output", photo / "inside") == (
        "photo.png/inside/photo-reconstruction.png can't be written: Not a directory"
    )


def test_errors_show_where_they_come_from_on_request(uniwetok, monkeypatch):
    monkeypatch.setenv("UNIWETOK_TRACEBACK", "1")
    result = uniwetok("describe", "missing.png")
    assert result.code == 1
    assert result.err[0].startswith("Traceback") and "read_image" in "\n".join(result.err)
    assert result.err[-1] == "uniwetok: error: missing.png: no such file"


def run_python(*argv):
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=120)


def test_process_exit_codes():
    missing = run_python("-m", "uniwetok_hf", "reconstruct", "missing.png")
    assert missing.returncode == 1
    assert missing.stderr == "uniwetok: error: missing.png: no such file\n"
    assert missing.stdout == ""


def run_shell(command: str) -> subprocess.CompletedProcess:
    program = f"{sys.executable} -m uniwetok_hf"
    script = f"set -o pipefail; {command.replace('uniwetok', program)}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # as in a shell
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize(
    "command, reader",
    [("--help", "true"), pytest.param("train mllm --help", "head -n 1 > /dev/null", marks=pytest.mark.slow)],
)
def test_a_closed_pipe_is_silent(command, reader):
    """Libraries may say something when they are imported, pipe or not."""
    imported = run_shell(f"uniwetok {command} > /dev/null").stderr
    assert run_shell(f"uniwetok {command} | {reader}").stderr == imported
    assert "Error" not in imported


@pytest.mark.parametrize(
    "command", ["--help", pytest.param("generate apple --output apple.png", marks=pytest.mark.slow)]
)
def test_a_full_disk_under_stdout_is_one_line(command):
    result = run_shell(f"uniwetok {command} > /dev/full")
    assert result.returncode == 1
    assert result.stderr == "uniwetok: error: the output can't be written: No space left on device\n"


def test_a_full_disk_without_a_name_is_no_bug(fails, monkeypatch):
    def fill(args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(describe, "run_describe", fill)
    assert fails("describe", "a.png") == "No space left on device"
