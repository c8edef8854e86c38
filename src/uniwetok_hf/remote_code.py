# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The revision `with-code`: the files of a repository and, beside them, code that loads them without this package.

For each part, one self-contained file is generated from the package's modules. One file, because diffusers downloads
no second one for a part with weights; from the modules, so that there is nothing to maintain twice. A file holds only
what its classes use: whoever is asked to trust it has less to read. This module itself stays in the package.
"""

import ast
import json
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    snapshot_download,
)
from huggingface_hub.hf_api import RepoFile

from .hub import hub_api
from .version import __version__


REVISION = "with-code"
PACKAGE = Path(__file__).parent
LICENCE = "# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0."


@dataclass(frozen=True)
class Part:
    """How one class travels.

    Args:
        source: the module that defines it, relative to the package.
        auto_map: for each Auto class, the class of `source` that it loads.
        hidden: base classes that the file uses and then deletes: diffusers accepts one pipeline in a file.
    """

    source: str
    auto_map: dict[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()

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
        },
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
}
MODEL_TYPES = {"uniwetok": "UniWeTokModel", "uniwetok_mllm": "UniWeTokForCausalLM"}


def push_code(repo_id: str, *, revision: str = "main", token: str | bool | None = None) -> str:
    """Writes the branch `with-code` of a repository on the Hub: the files of `revision` and generated code.

    It becomes so in one commit. Weights are copied on the Hub, without passing through this machine.

    Args:
        repo_id: name of a repository that holds a model, a processor or a pipeline of this package.
        revision: the branch, tag or commit without code.
        token: as in huggingface_hub.

    Returns:
        The id of the commit.

    Raises:
        ValueError: when the repository holds nothing of this package, or `revision` is `with-code` itself.
    """
    if revision == REVISION:
        raise ValueError(f"`revision` must be one without code, got {revision!r}.")
    api = hub_api(token)
    source = api.repo_info(repo_id, revision=revision).sha
    files = _tree(api, repo_id, source)
    large = [path for path, file in files.items() if file.lfs is not None]
    with tempfile.TemporaryDirectory() as folder:
        snapshot_download(repo_id, revision=source, token=token, local_dir=folder, ignore_patterns=large)
        small = {*files, *add_code(folder)} - {*large}
        is_new = REVISION not in [branch.name for branch in api.list_repo_refs(repo_id).branches]
        if is_new:
            api.create_branch(repo_id, branch=REVISION, revision=source)
        try:
            old = _tree(api, repo_id, REVISION)
            operations = [CommitOperationAdd(path, Path(folder, path)) for path in sorted(small)]
            operations += [
                CommitOperationCopy(path, path, src_revision=source)
                for path in large
                if path not in old or old[path].blob_id != files[path].blob_id
            ]
            operations += [CommitOperationDelete(path) for path in sorted({*old} - {*files, *small})]
            message = f"Files of {source[:8]} with the code of uniwetok-hf {__version__}"
            return api.create_commit(repo_id, operations, commit_message=message, revision=REVISION).oid
        except BaseException:
            if is_new:  # as it stands it has no code
                api.delete_branch(repo_id, branch=REVISION)
            raise


def _tree(api: HfApi, repo_id: str, revision: str) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


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
        for name in ("UniWeTokPipeline", "UniWeTokEditPipeline"):  # they have the same parts
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
        ValueError: when a module is written in a way that can't be joined with others; the message names the place.
    """
    part = PARTS[name]
    modules = _used_modules(PACKAGE / part.source, [name, *part.auto_map.values()])
    sections, imports, owners = [], {}, {}
    for module, used in modules:
        kept = [statement for statement in module.statements if statement in used]
        for bound in [bound for statement in kept for bound in statement.names]:
            if owners.setdefault(bound, module.name) != module.name:
                raise ValueError(f"{module.name}: {bound} is also defined in {owners[bound]}.")
        for bound in sorted({bound for statement in kept for bound in statement.uses & module.imports.keys()}):
            if imports.setdefault(bound, module.imports[bound]) != module.imports[bound]:
                raise ValueError(f"{module.name}: another module imports something else as {bound}.")
        title = f"# {module.name}" if module is not modules[-1][0] else ""
        notes = [f"# {line}".rstrip() for line in module.docstring.splitlines()] if title else []
        text = module.joined(kept)
        if kept:
            sections.append("\n".join([title, *notes, "", "", text]) if title else text)
    if clashes := imports.keys() & owners.keys():
        raise ValueError(f"{part.source}: {sorted(clashes)} are both imported and defined.")
    origin = f"Generated by uniwetok-hf {__version__}, for where it is not installed, from "
    origin += ", ".join(module.name for module, used in modules if used) + ". Change those, not this file."
    header = [LICENCE, *textwrap.wrap(origin, 117, initial_indent="# ", subsequent_indent="# ")]
    header += [modules[-1][0].literal, "", *_import_lines(imports)]
    footer = [f"del {hidden}  # one pipeline in a file is what diffusers looks for\n" for hidden in part.hidden]
    exported = sorted({name, *part.auto_map.values()})
    footer.append("__all__ = [" + ", ".join(f'"{exports}"' for exports in exported) + "]\n")
    return "\n\n\n".join(["\n".join(header), *sections, "\n".join(footer)])


def _import_lines(imports: dict[str, frozenset[tuple[str, str]]]) -> list[str]:
    """`import ...` first, then `from ... import ...`, each in order."""
    plain, members = set(), {}
    for module, member in (line for lines in imports.values() for line in lines):
        if member:
            members.setdefault(module, set()).add(member)
        else:
            plain.add(f"import {module}")
    lines = sorted(plain)
    for module, names in sorted(members.items()):
        line = f"from {module} import {', '.join(sorted(names))}"
        if len(line) > 119:
            line = f"from {module} import (\n" + "".join(f"    {name},\n" for name in sorted(names)) + ")"
        lines.append(line)
    return lines


@dataclass(frozen=True)
class _Statement:
    """A statement of a module: its lines (comments right above it included), what it defines and what it uses."""

    first: int
    last: int
    names: tuple[str, ...]
    uses: frozenset[str]


@dataclass
class _Module:
    """A module of the package, cut into statements.

    `imports` says for each name which lines `import module` (module, "") or `from module import member` (module,
    member) make it; `siblings`, from which module of the package a name comes.
    """

    name: str
    lines: list[str]
    docstring: str
    literal: str  # the docstring as it is written
    imports: dict[str, frozenset[tuple[str, str]]] = field(default_factory=dict)
    siblings: dict[str, Path] = field(default_factory=dict)
    statements: list[_Statement] = field(default_factory=list)

    def joined(self, statements: list[_Statement]) -> str:
        """The text of `statements`. What stood together, as constants do, stays together."""
        text, before = "", None
        for statement in statements:
            if before is not None:
                text += "\n" if statement.first == before.last + 1 else "\n\n\n"
            text += "\n".join(self.lines[statement.first - 1 : statement.last])
            before = statement
        return text


@cache
def _read(path: Path) -> _Module:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    docstring, lines = ast.get_docstring(tree), source.splitlines()
    if docstring is None:
        raise ValueError(f"{path.name}: a module must begin with a docstring.")
    literal = "\n".join(lines[tree.body[0].lineno - 1 : tree.body[0].end_lineno])
    module = _Module(path.relative_to(PACKAGE).as_posix(), lines, docstring, literal)
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = ["uniwetok_hf"] if node.level > 0 and node not in top else [node.module or ""]
        if "uniwetok_hf" in [name.split(".")[0] for name in names]:
            raise ValueError(f"{module.name}:{node.lineno}: siblings are imported on top, by `from .x import y`.")
    for node in tree.body:
        if node in top:
            _read_import(module, path, node)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign | ast.Expr):
            names = _defined_names(node)
            if names != ("__all__",) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
                while first > 1 and module.lines[first - 2].startswith("#"):
                    first -= 1
                uses = frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name))
                module.statements.append(_Statement(first, node.end_lineno, names, uses))
        else:
            raise ValueError(f"{module.name}:{node.lineno}: only definitions and registrations can be joined.")
    return module


def _read_import(module: _Module, path: Path, node: ast.Import | ast.ImportFrom):
    for alias in node.names:
        renamed = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
        if isinstance(node, ast.Import):
            bound = alias.asname or alias.name.split(".")[0]
            module.imports[bound] = module.imports.get(bound, frozenset()) | {(renamed, "")}
        elif node.level == 0:
            module.imports[alias.asname or alias.name] = frozenset({(node.module, renamed)})
        elif node.module is None or alias.asname:
            raise ValueError(f"{module.name}:{node.lineno}: siblings are imported on top, by `from .x import y`.")
        else:
            base = path.parents[node.level - 1]
            module.siblings[alias.name] = base.joinpath(*node.module.split(".")).with_suffix(".py")


def _defined_names(node: ast.stmt) -> tuple[str, ...]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return (node.name,)
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return tuple(target.id for target in targets if isinstance(target, ast.Name))


def _used_modules(entry: Path, names: list[str]) -> list[tuple[_Module, set[_Statement]]]:
    """The modules that `names` of `entry` need, each after those that it needs, with the statements that are needed:
    definitions, and what a needed module does when it is imported."""
    used: dict[Path, set[_Statement]] = {}
    order: list[Path] = []

    def visit(path: Path):
        if path not in used:
            used[path] = set()
            module = _read(path)
            for sibling in module.siblings.values():
                visit(sibling)
            order.append(path)
            for statement in module.statements:
                if not statement.names:
                    need(path, statement)

    def need(path: Path, statement: _Statement):
        if statement not in used[path]:
            used[path].add(statement)
            for name in statement.uses:
                look_up(path, name)

    def look_up(path: Path, name: str):
        module = _read(path)
        if name in module.siblings:
            look_up(module.siblings[name], name)
        for statement in module.statements:
            if name in statement.names:
                need(path, statement)

    visit(entry)
    for name in names:
        look_up(entry, name)
    return [(_read(path), used[path]) for path in order]
