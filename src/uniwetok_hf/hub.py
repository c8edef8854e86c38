# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Uploads to the Hub: the package's card, one commit per push, and on request the branch `with-code`.

`push_to_hub` of models, processors and pipelines ends here, and so does the command `uniwetok push`. What the
libraries do instead: transformers leaves the weight files of a former push beside the new ones, so that a former
`model.safetensors` is loaded in place of new shards, and both write a generic card.

The classes know nothing of this, because their files travel to the Hub as code: where they are registered with the
Auto classes, [`add_push_to_hub`] gives them the methods.
"""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    snapshot_download,
)
from huggingface_hub.hf_api import RepoFile

from .cards import card_of, card_to_push
from .files import weight_variant
from .remote_code import add_code
from .version import __version__


CODE_REVISION = "with-code"


def hub_api(token: str | bool | None = None) -> HfApi:
    """The client of the Hub, with this package as its user agent."""
    return HfApi(library_name="uniwetok-hf", library_version=__version__, token=token)


def files_of(folder: str | os.PathLike) -> list[str]:
    """Paths of all files below `folder` except hidden ones, with `/`."""
    paths = [path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file()]
    hidden = (".", "__pycache__")
    return sorted(path.as_posix() for path in paths if not any(part.startswith(hidden) for part in path.parts))


def upload(
    folder: str | os.PathLike,
    repo_id: str,
    files: Iterable[str] | None = None,
    card: ModelCard | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """
    Uploads files of a folder to an existing repository, in one commit that also deletes the weight files of a former
    push of the same variant. Not `HfApi.upload_folder`: it sends only what lies in the folder, and the card does not.

    Args:
        folder: the local folder.
        repo_id: `org/name`.
        files: paths in `folder`; all except hidden ones when not given.
        card: the `README.md` of the commit, in place of the folder's.
        subfolder: the folder in the repository; its root when not given.
        revision: a branch, created from `main` when it does not exist; `main` when not given.
        token, commit_message, commit_description, create_pr: as in `HfApi.create_commit`.

    Raises:
        HfHubHTTPError: when the Hub refuses. Then, as when the connection breaks, no commit is made.
    """
    api = hub_api(token)
    contents = {name: Path(folder, name) for name in (files_of(folder) if files is None else files)}
    if card is not None:
        contents["README.md"] = str(card).encode()
    contents = {PurePosixPath((subfolder or "").strip("/"), name): source for name, source in contents.items()}
    if revision is not None and not create_pr and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    operations = [CommitOperationAdd(str(path), source) for path, source in contents.items()]
    if weights := {(path.parent, variant) for path in contents if (variant := weight_variant(path.name)) is not None}:
        for path in map(PurePosixPath, api.list_repo_files(repo_id, revision=revision)):
            if path not in contents and (path.parent, weight_variant(path.name)) in weights:
                operations.append(CommitOperationDelete(str(path)))
    return api.create_commit(
        repo_id,
        operations,
        commit_message=commit_message or "Upload with uniwetok-hf",
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
    )


def push_code(repo_id: str, *, revision: str = "main", token: str | bool | None = None) -> str:
    """Writes the branch `with-code` of a repository: the files of `revision` and generated code.

    The branch changes in one commit. Weights are copied on the Hub and never pass through this machine.

    Args:
        repo_id: a repository with a model, a processor or a pipeline of this package.
        revision: the branch, tag or commit without code.
        token: as in huggingface_hub.

    Returns:
        The id of the commit.

    Raises:
        ValueError: when the repository holds nothing of this package, or `revision` is `with-code` itself.
    """
    if revision == CODE_REVISION:
        raise ValueError(f"`revision` must be one without code, got {revision!r}.")
    api = hub_api(token)
    source = api.repo_info(repo_id, revision=revision).sha
    files = _tree(api, repo_id, source)
    large = [path for path, file in files.items() if file.lfs is not None]
    with tempfile.TemporaryDirectory() as folder:
        snapshot_download(repo_id, revision=source, token=token, local_dir=folder, ignore_patterns=large)
        small = {*files, *add_code(folder)} - {*large}
        is_new = CODE_REVISION not in [branch.name for branch in api.list_repo_refs(repo_id).branches]
        if is_new:
            api.create_branch(repo_id, branch=CODE_REVISION, revision=source)
        try:
            old = _tree(api, repo_id, CODE_REVISION)
            operations = [CommitOperationAdd(path, Path(folder, path)) for path in sorted(small)]
            operations += [
                CommitOperationCopy(path, path, src_revision=source)
                for path in large
                if path not in old or old[path].blob_id != files[path].blob_id
            ]
            operations += [CommitOperationDelete(path) for path in sorted({*old} - {*files, *small})]
            message = f"Files of {source[:8]} with the code of uniwetok-hf {__version__}"
            return api.create_commit(repo_id, operations, commit_message=message, revision=CODE_REVISION).oid
        except BaseException:
            if is_new:  # without the commit it has no code
                api.delete_branch(repo_id, branch=CODE_REVISION)
            raise


def _tree(api: HfApi, repo_id: str, revision: str) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def add_push_to_hub(*classes: type) -> None:
    """Gives models, processors and pipelines `push_to_hub(..., include_code=)` and uploads by [`upload`]."""
    for one in classes:
        one.push_to_hub = _with_include_code(one.push_to_hub)
        # The last step of the libraries' own `push_to_hub`, and of `save_pretrained(push_to_hub=True)`.
        if hasattr(one, "_upload_modified_files"):  # transformers
            one._upload_modified_files = _upload_modified_files
        else:  # diffusers
            one._upload_folder = _upload_folder


def _with_include_code(library_push_to_hub):
    def push_to_hub(self, repo_id: str, *args, include_code: bool = False, **kwargs) -> CommitInfo:
        """Uploads to the Hub; every other argument is the library's own.

        The revision that is pushed to holds no code and loads with the package, without `trust_remote_code`.

        Args:
            repo_id: name on the Hub.
            include_code: whether to write the branch `with-code` too: the same files and generated code, with which
                the Auto classes and `DiffusionPipeline` load it where the package is not installed.

        Raises:
            ValueError: for `include_code` together with `create_pr`, since a pull request is not a second branch.
        """
        if include_code and kwargs.get("create_pr"):
            raise ValueError("`include_code` writes a branch of its own: it can't be used with `create_pr`.")
        commit = library_push_to_hub(self, repo_id, *args, **kwargs)
        if include_code:
            push_code(commit.repo_url.repo_id, revision=commit.oid, token=kwargs.get("token"))
        return commit

    return push_to_hub


def _upload_modified_files(self, working_dir, repo_id, files_timestamps, **kwargs) -> CommitInfo:
    written = {
        name
        for name in os.listdir(working_dir)
        if os.path.getmtime(os.path.join(working_dir, name)) > files_timestamps.get(name, 0)
    }
    files = [path for path in files_of(working_dir) if path.split("/")[0] in written]
    return _upload_saved(self, working_dir, repo_id, files=files, **kwargs)


def _upload_folder(self, working_dir, repo_id, **kwargs) -> CommitInfo:
    return _upload_saved(self, working_dir, repo_id, **kwargs)


def _upload_saved(part, folder, repo_id: str, subfolder: str | None = None, **kwargs) -> CommitInfo:
    """Uploads what `part.save_pretrained` wrote into `folder`."""
    if getattr(part, "_auto_class", None) is None:  # else its user registered it to be saved with its code
        _forget_code(folder)
    card = None if subfolder else card_of(part, repo_id)  # the card is the repository's, not a subfolder's
    if card is not None:
        card = card_to_push(card, Path(folder, "README.md"))
    kwargs["commit_message"] = kwargs.get("commit_message") or f"Upload {type(part).__name__}"
    return upload(folder, repo_id, card=card, subfolder=subfolder, **kwargs)


def _forget_code(folder: str | os.PathLike) -> None:
    """Removes the names of code from configs: what the package's classes loaded from `with-code` still has them."""
    for path in Path(folder).rglob("*config.json"):
        fields = json.loads(path.read_text(encoding="utf-8"))
        named = [part for part in (fields, fields.get("image_processor")) if part and part.pop("auto_map", None)]
        if named:
            path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
