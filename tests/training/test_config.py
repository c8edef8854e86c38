"""Configs: sections, types, overrides, errors that name the field."""

from dataclasses import dataclass
from typing import Literal

import pytest

from uniwetok_hf.training.config import (
    config_values,
    explain,
    find_config,
    flat_values,
    read_config,
    setting,
    shipped_configs,
)


@dataclass
class Section:
    weight: float = setting(help="how much")
    kind: Literal["a", "b"] = setting("a", "which")


@dataclass
class Config:
    steps: int = setting(help="how long")
    rate: float = setting(1e-3, "how fast")
    name: str | None = setting(None, "what it is called")
    sizes: list[int] = setting([1, 2], "how large")
    extra: dict = setting({}, "the rest")
    active: bool = setting(False, "whether")
    part: Section | None = setting(None, "a part")
    parts: list[Section] = setting([], "several parts")

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError("`steps` must be 0 or more.")


def read(tmp_path, text, **overrides):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return read_config(Config, path, **overrides)


def test_values_have_the_types_of_their_fields(tmp_path):
    config = read(tmp_path, "steps: 3\nrate: 1e-4\nname: x\npart: {weight: 2}\nparts: [{weight: 1e0, kind: b}]\n")
    assert config == Config(steps=3, rate=1e-4, name="x", part=Section(2.0), parts=[Section(1.0, "b")])
    assert isinstance(config.rate, float) and isinstance(config.part.weight, float)
    assert Config(**config_values(config) | {"part": None, "parts": []}).rate == 1e-4


def test_defaults_are_not_shared(tmp_path):
    read(tmp_path, "steps: 1").sizes.append(3)
    assert read(tmp_path, "steps: 1").sizes == [1, 2]


def test_overrides_win_also_in_sections_and_as_null(tmp_path):
    text = "steps: 3\nname: x\npart: {weight: 2}\n"
    config = read(tmp_path, text, **{"steps": 5, "name": None, "part.kind": "b"})
    assert (config.steps, config.name, config.part) == (5, None, Section(2.0, "b"))
    assert read(tmp_path, text, part=None).part is None
    assert read(tmp_path, "steps: 3", **{"part.weight": 1}).part == Section(1.0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("rate: 1", "missing field steps"),
        ("steps: 1\nstep: 2", r"unknown field step \(did you mean steps\?\); the fields are steps, rate"),
        ("steps: many", "`steps` must be a whole number, got 'many'"),
        ("steps: true", "`steps` must be a whole number, got True"),
        ("steps: 1.5", "`steps` must be a whole number, got 1.5"),
        ("steps: null", "`steps` must be a whole number, got None"),
        ("steps: 1\nrate: fast", "`rate` must be a number, got 'fast'"),
        ("steps: 1\nrate: true", "`rate` must be a number, got True"),
        ("steps: 1\nname: 3", "`name` must be text or null, got 3"),
        ("steps: 1\nsizes: [1, x]", r"`sizes\[1\]` must be a whole number, got 'x'"),
        ("steps: 1\nsizes: 3", "`sizes` must be a list of a whole number, got 3"),
        ("steps: 1\nextra: 3", "`extra` must be a mapping, got 3"),
        ("steps: 1\nactive: 1", "`active` must be true or false, got 1"),
        ("steps: 1\npart: 3", "`part` must be a section or null, got 3"),
        ("steps: 1\npart: {}", "missing field part.weight"),
        ("steps: 1\npart: {weight: 1, size: 2}", "unknown field part.size"),
        ("steps: 1\nparts: [{weight: 1, kind: c}]", r"`parts\[0\].kind` must be one of a, b, got 'c'"),
        ("steps: -1", "`steps` must be 0 or more"),
        ("- 1", "must hold `field: value` lines, got list"),
        ("steps: [", "is no YAML"),
    ],
)
def test_errors_name_file_and_field(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, text)
    assert "config.yaml" in str(error.value) and str(error.value).count("config.yaml: ") <= 1


def test_setting_a_field_of_what_is_no_section(tmp_path):
    with pytest.raises(ValueError, match="`rate.x` can't be set: `rate` is no section"):
        read(tmp_path, "steps: 1\nrate: 2", **{"rate.x": 1})


def test_values_for_trackers_are_flat():
    values = flat_values(Config(steps=1, part=Section(2.0), extra={"a": {"b": 1}}))
    assert values["part.weight"] == 2.0 and values["extra.a.b"] == 1 and values["active"] is False
    assert values["sizes"] == "[1, 2]" and values["name"] == "None" and values["parts"] == "[]"


def test_explanations_name_every_field():
    lines = explain(Config)
    assert "  steps (a whole number, required): how long" in lines
    assert "  rate (a number, default 0.001): how fast" in lines
    assert "      weight (a number, required): how much" in lines
    assert sum("how much" in line for line in lines) == 2


def test_a_bare_no_is_text_where_text_is_wanted(tmp_path):
    """YAML 1.1 reads it as false; `mixed_precision: no` is what people write."""
    assert read(tmp_path, "steps: 3\nname: no").name == "no"
    with pytest.raises(ValueError, match="`name` must be text or null, got True"):
        read(tmp_path, "steps: 3\nname: yes")


def test_configs_are_found_by_name_or_path(tmp_path):
    name = shipped_configs()[0]
    assert find_config(name).stem == name
    path = tmp_path / "mine.yaml"
    path.write_text("")
    assert find_config(path) == path
    with pytest.raises(ValueError, match=f"`config` nothing: no such file; those that ship are {name}"):
        find_config("nothing")


# --- files that start from others ---


def write_files(folder, **files):
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / f"{next(iter(files)).replace('__', '/')}.yaml"


def test_a_base_is_merged_and_lists_are_replaced(tmp_path):
    last = write_files(
        tmp_path,
        last="base: parts/middle.yaml\nname: x\npart: {kind: b}\nsizes: [7]\n",
        parts__middle="base: first.yaml\nrate: 2\nextra: {b: {d: 2}}\nparts: [{weight: 3}]\n",
        parts__first="steps: 3\nrate: 1\npart: {weight: 2}\nsizes: [1, 2, 3]\n"
        "extra: {a: 1, b: {c: 1}}\nparts: [{weight: 1}, {weight: 2}]\n",
    )
    expected = Config(3, 2.0, "x", [7], {"a": 1, "b": {"c": 1, "d": 2}}, False, Section(2.0, "b"), [Section(3.0)])
    assert read_config(Config, last) == expected
    assert read_config(Config, last, **{"part.weight": 5}).part == Section(5.0, "b")
    assert read_config(Config, write_files(tmp_path, off="base: last.yaml\npart: null\n")).part is None


def test_a_base_may_be_a_shipped_config(tmp_path, monkeypatch):
    monkeypatch.setattr("uniwetok_hf.training.config.CONFIGS", tmp_path / "shipped")
    write_files(tmp_path, shipped__small="steps: 3\n")
    assert read(tmp_path, "base: small\nrate: 2\n") == Config(3, 2.0)
    with pytest.raises(ValueError, match=r"config.yaml: `base` large: there is no such file in .*those are small\.$"):
        read(tmp_path, "base: large\n")


def test_circles_are_refused(tmp_path):
    first = write_files(tmp_path, a="base: b.yaml\n", b="base: c.yaml\n", c="base: a.yaml\nsteps: 1\n")
    with pytest.raises(ValueError, match=r"c.yaml: `base` leads back to .*: .*/a.yaml -> .*/b.yaml -> .*/c.yaml -> "):
        read_config(Config, first)


@pytest.mark.parametrize(
    "last, first, message",
    [
        ("rate: 1", "steps: many", "first.yaml: `steps` must be a whole number"),
        ("steps: many", "steps: 1", "last.yaml: `steps` must be a whole number"),
        ("part: {kind: b}", "steps: 1\npart: {weight: x}", "first.yaml: `part.weight` must be a number"),
        ("part: {kind: c}", "steps: 1\npart: {weight: 1}", "last.yaml: `part.kind` must be one of"),
        ("rate: 1", "steps: 1\nstep: 1", "first.yaml: unknown field step "),
        ("rate: 1", "rate: 2", "last.yaml: missing field steps"),
    ],
)
def test_errors_name_the_file_that_holds_the_field(tmp_path, last, first, message):
    path = write_files(tmp_path, last=f"base: first.yaml\n{last}\n", first=first)
    with pytest.raises(ValueError, match=f"/{message}"):
        read_config(Config, path)


# --- places ---


def test_places_are_found_beside_the_file_they_are_written_in(tmp_path, monkeypatch):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text("")
    texts = {
        "here__mine": "base: ../there/theirs.yaml\nname: own.py:A\n",
        "there__theirs": "steps: 1\nextra: {task: [own.py:B]}\n",
    }
    path = write_files(tmp_path, **texts)
    monkeypatch.chdir(tmp_path / "there")
    config = read_config(Config, path)
    assert config.name == f"{tmp_path}/here/own.py:A" and config.extra == {"task": [f"{tmp_path}/there/own.py:B"]}
    assert read_config(Config, path, name="own.py:C").name == f"{tmp_path}/here/own.py:C"
    # Records may be published, and say nothing of where files lie.
    assert config_values(config)["name"] == "own.py:A" and config_values(config)["extra"] == {"task": ["own.py:B"]}
    with pytest.raises(ValueError, match=r"config.yaml: `extra.task\[1\]`: `none.py:X`: there is no file none.py in"):
        read(tmp_path, "steps: 1\nextra: {task: [a, none.py:X]}")


@dataclass
class Source:
    path: str = setting(help="where")
    columns: dict = setting({}, "which")


@dataclass
class Paths:
    output_dir: str = setting(help="where to")
    data: list[Source] = setting([], "from where")
    prompt: str = setting("", "no path")


def test_the_home_is_expanded_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    texts = {
        "last": "base: first.yaml\noutput_dir: ~/runs/x\nprompt: ~/o/\n",
        "first": "output_dir: ''\ndata: [{path: ~/photos, columns: {path: ~/c}}, {path: a/~}, {path: 'hf://a/~'}]\n",
    }
    path = write_files(tmp_path, **texts)
    sources = [Source("/home/me/photos", {"path": "~/c"}), Source("a/~"), Source("hf://a/~")]
    assert read_config(Paths, path) == Paths("/home/me/runs/x", sources, "~/o/")
    changed = read_config(Paths, path, output_dir="~/y", data=[{"path": "~/z"}])
    assert changed == Paths("/home/me/y", [Source("/home/me/z")], "~/o/")


def test_a_mapping_of_the_base_is_left_out(tmp_path):
    path = write_files(tmp_path, last="base: first.yaml\nextra: null\n", first="steps: 1\nextra: {a: 1}\n")
    assert read_config(Config, path).extra == {}
