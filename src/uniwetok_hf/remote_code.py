# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Code for the revision `with-code`: one self-contained file per part, generated from the package's modules.

Why it is generated: `register_for_auto_class` of transformers would serve models and processors, since transformers
fetches a module with all that it imports, but diffusers would not load a pipeline of them. It copies the modules that
a part's file imports, but not those that they import in turn, and of a part with weights it downloads a single `.py`
(0.42). So each part is one file, and since the Auto classes load the same file, one mechanism serves both libraries.

A file holds the definitions that its classes use and no others: whoever is asked to trust it has less to read. The
tests check every generated file: it needs only the libraries, has no undefined name, and computes the same.
"""

import ast
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from .version import __version__


PACKAGE = Path(__file__).parent
LICENCE = "# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0."


@dataclass(frozen=True)
class Part:
    """How one class travels.

    Args:
        source: the module that defines it, relative to the package.
        auto_map: for each Auto class, the class of `source` that it loads.
    """

    source: str
    auto_map: dict[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """Name of the generated file, without `.py`."""
        return Path(self.source).stem


PARTS = {
    "UniWeTokModel": Part(
        "modeling/modeling_uniwetok.py", {"AutoConfig": "UniWeTokConfig", "AutoModel": "UniWeTokModel"}
    ),
    "UniWeTokForCausalLM": Part(
        "modeling/modeling_uniwetok_mllm.py",
        {
            "AutoConfig": "UniWeTokMLLMConfig",
            "AutoModel": "UniWeTokMLLMModel",
            "AutoModelForCausalLM": "UniWeTokForCausalLM",
            "AutoModelForImageTextToText": "UniWeTokForCausalLM",
            "AutoModelForMultimodalLM": "UniWeTokForCausalLM",
            "AutoModelForPreTraining": "UniWeTokForCausalLM",
        },
    ),
    "UniWeTokClassToImageModel": Part(
        "modeling/modeling_uniwetok_class_to_image.py",
        {"AutoConfig": "UniWeTokClassToImageConfig", "AutoModel": "UniWeTokClassToImageModel"},
    ),
    "UniWeTokImageProcessor": Part(
        "modeling/image_processing_uniwetok.py", {"AutoImageProcessor": "UniWeTokImageProcessor"}
    ),
    "UniWeTokProcessor": Part(
        "modeling/processing_uniwetok.py",
        {"AutoProcessor": "UniWeTokProcessor", "AutoImageProcessor": "UniWeTokImageProcessor"},
    ),
    "BinaryFlowScheduler": Part("schedulers/scheduling_binary_flow.py"),
    "UniWeTokPipeline": Part("pipelines/pipeline_uniwetok.py"),
    "UniWeTokEditPipeline": Part("pipelines/pipeline_uniwetok_edit.py"),
    "UniWeTokClassToImagePipeline": Part("pipelines/pipeline_uniwetok_class_to_image.py"),
}
MODEL_TYPES = {
    "uniwetok": "UniWeTokModel",
    "uniwetok_mllm": "UniWeTokForCausalLM",
    "uniwetok_class_to_image": "UniWeTokClassToImageModel",
}
SAME_PARTS = ("UniWeTokPipeline", "UniWeTokEditPipeline")  # a folder of one loads as the other, too


def add_code(folder: str | Path) -> list[str]:
    """Writes code into a folder that `save_pretrained` wrote, and the names of that code into its JSON files.

    Returns:
        The paths, relative to `folder`, of what was written.

    Raises:
        ValueError: when the folder holds nothing of this package.
    """
    folder = Path(folder)
    written = {}
    for path in sorted(folder.rglob("*config.json")):
        where = path.parent.relative_to(folder)
        fields = json.loads(path.read_text(encoding="utf-8"))
        for name, target in _parts_of(path.name, fields):
            # transformers looks for the code of a subfolder from the root, in files and by id alike.
            prefix = where.joinpath(PARTS[name].module).as_posix()
            target["auto_map"] = {auto: f"{prefix}.{found}" for auto, found in PARTS[name].auto_map.items()}
            written[path] = _as_json(fields)
            written[folder / f"{prefix}.py"] = generate(name)
    index = folder / "model_index.json"
    if index.is_file():
        fields = json.loads(index.read_text(encoding="utf-8"))
        for component, value in fields.items():
            if isinstance(value, list) and value[0] == "uniwetok_hf":
                fields[component] = [PARTS[value[1]].module, value[1]]
                written[folder / component / f"{PARTS[value[1]].module}.py"] = generate(value[1])
        if isinstance(fields["_class_name"], str):
            fields["_class_name"] = [PARTS[fields["_class_name"]].module, fields["_class_name"]]
        name = fields["_class_name"][1]
        for name in SAME_PARTS if name in SAME_PARTS else (name,):
            written[folder / f"{PARTS[name].module}.py"] = generate(name)
        written[index] = _as_json(fields)
    if not written:
        raise ValueError("There is no model, processor or pipeline of uniwetok-hf to write code for.")
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
    return [path.relative_to(folder).as_posix() for path in written]


def _parts_of(name: str, fields: dict) -> Iterator[tuple[str, dict]]:
    """The classes of ours that a JSON file stands for, each with the fields that take its `auto_map`."""
    if name == "config.json" and fields.get("model_type") in MODEL_TYPES:
        yield MODEL_TYPES[fields["model_type"]], fields
    elif name == "preprocessor_config.json" and fields.get("image_processor_type") == "UniWeTokImageProcessor":
        yield "UniWeTokImageProcessor", fields
    elif name == "processor_config.json" and fields.get("processor_class") == "UniWeTokProcessor":
        yield "UniWeTokProcessor", fields
        yield "UniWeTokProcessor", fields["image_processor"]


def _as_json(fields: dict) -> str:
    return json.dumps(fields, indent=2, sort_keys=True) + "\n"


@cache
def generate(name: str) -> str:
    """The text of the self-contained file of the class `name`, one of `PARTS`.

    Raises:
        ValueError: when two modules use one name for different things; the message has both.
    """
    part = PARTS[name]
    modules = _with_siblings(PACKAGE / part.source)
    exported = sorted({name, *part.auto_map.values()})
    used = _used_names([statement for module in modules for statement in module.statements], exported)
    meanings, imports, sections, origins = {}, set(), [], []
    for module in modules:
        kept = [statement for statement in module.statements if statement.is_kept(used)]
        needed = {(bound, line) for bound, line in module.imports if any(bound in one.uses for one in kept)}
        imports |= {line for _, line in needed}
        defined = {(bound, f"defined in {module.name}") for statement in kept for bound in statement.names}
        for bound, meaning in needed | defined:
            # `import a.b` and `import a` both give `a`.
            meaning = f"import {bound}" if meaning.startswith(f"import {bound}.") else meaning
            if meanings.setdefault(bound, meaning) != meaning:
                raise ValueError(f"{module.name}: {bound} is `{meaning}`, elsewhere `{meanings[bound]}`.")
        if kept:
            origins.append(module.name)
            notes = [] if module is modules[-1] else [module.name, *module.docstring.strip('"').strip().splitlines()]
            title = "\n".join(f"# {line}".rstrip() for line in notes)
            sections.append((f"{title}\n\n\n" if title else "") + module.joined(kept))
    origin = f"Generated by uniwetok-hf {__version__}, for where it is not installed, from {', '.join(origins)}. "
    origin = textwrap.wrap(f"{origin}Change those, not this file.", 117, initial_indent="# ", subsequent_indent="# ")
    header = [LICENCE, *origin, modules[-1].docstring, ""]
    header += sorted(imports, key=lambda line: (line.startswith("from "), line))
    return "\n\n\n".join(["\n".join(header), *sections, f"__all__ = {json.dumps(exported)}\n"])


@dataclass(frozen=True)
class _Statement:
    """A statement of a module: its lines (comments right above it included), what it defines and what it uses."""

    first: int
    last: int
    names: frozenset[str]
    uses: frozenset[str]

    def is_kept(self, used: set[str]) -> bool:
        """Whether it defines something that is used, or is run when the module is imported."""
        return not self.names or bool(self.names & used)


@dataclass(frozen=True)
class _Module:
    """A module of the package, cut into statements.

    Args:
        name: its path in the package.
        docstring: as written, with quotes.
        lines: its whole text.
        imports: names that come from libraries, each with the line that imports it.
        siblings: the modules of the package that it imports.
        statements: all others.
    """

    name: str
    docstring: str
    lines: list[str]
    imports: list[tuple[str, str]]
    siblings: list[Path]
    statements: list[_Statement]

    def joined(self, statements: list[_Statement]) -> str:
        """The text of `statements`. What stood together, as constants do, stays together."""
        text, last = "", None
        for statement in statements:
            if last is not None:
                text += "\n" if statement.first == last + 1 else "\n\n\n"
            text += "\n".join(self.lines[statement.first - 1 : statement.last])
            last = statement.last
        return text


def _with_siblings(entry: Path) -> list[_Module]:
    """A module and those of the package that it needs, each after those that it imports."""
    found = {}

    def visit(path: Path):
        if path not in found:
            module = _read(path)
            for sibling in module.siblings:
                visit(sibling)
            found[path] = module

    visit(entry)
    return list(found.values())


def _read(path: Path) -> _Module:
    source = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines()
    imports, siblings, statements = [], [], []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            siblings.append(path.parents[node.level - 1].joinpath(*node.module.split(".")).with_suffix(".py"))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                line = ast.Import([alias]) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, [alias], 0)
                imports.append((alias.asname or alias.name.split(".")[0], ast.unparse(line)))
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):  # no docstring
            names = _defined_names(node)
            if names != {"__all__"}:
                first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
                while lines[first - 2].startswith("#"):
                    first -= 1
                uses = frozenset(name.id for name in ast.walk(node) if isinstance(name, ast.Name))
                statements.append(_Statement(first, node.end_lineno, names, uses))
    name = path.relative_to(PACKAGE).as_posix()
    docstring = "\n".join(lines[tree.body[0].lineno - 1 : tree.body[0].end_lineno])
    return _Module(name, docstring, lines, imports, siblings, statements)


def _defined_names(node: ast.stmt) -> frozenset[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return frozenset({node.name})
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return frozenset(target.id for target in targets if isinstance(target, ast.Name))


def _used_names(statements: list[_Statement], exported: list[str]) -> set[str]:
    """The names that `exported` ones need, directly or through others."""
    used, before = set(exported), None
    while used != before:
        before = set(used)
        for statement in statements:
            if statement.is_kept(used):
                used |= statement.uses
    return used
