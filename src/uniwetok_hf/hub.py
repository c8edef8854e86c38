# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Uploading to the Hub in one commit, so that no revision ever holds half a model, or parts of two.

`push_to_hub` of the models and pipelines and the command `uniwetok push` end here. What the libraries do instead:
transformers leaves a former push's weight files beside the new ones, of which `model.safetensors` would be loaded in
place of new shards, and diffusers' upload of a large folder is made of several commits.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard

from .version import __version__


WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def hub_api(token: str | bool | None = None) -> HfApi:
    """The Hub's interface, which is told who asks."""
    return HfApi(library_name="uniwetok-hf", library_version=__version__, token=token)


def files_of(folder: str | os.PathLike) -> list[str]:
    """Paths of all files below `folder` but the hidden ones, with `/`."""
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
    Makes one commit of the files of a folder to a repository that exists.

    Args:
        folder: where they are.
        repo_id: `org/name`.
        files: their paths in `folder`; all but the hidden ones when not given.
        card: what becomes `README.md`, in place of the folder's.
        subfolder: where they go in the repository; its root when not given.
        revision: a branch, made from `main` where there is none; `main` when not given.
        token, commit_message, commit_description, create_pr: as in `HfApi.create_commit`.

    Weight files of a former push that would stand beside the new ones are deleted by the same commit.

    Raises:
        HfHubHTTPError: when the Hub refuses; then, as when the connection breaks, no commit was made.
    """
    api, prefix = hub_api(token), f"{subfolder.strip('/')}/" if subfolder else ""
    contents = {name: Path(folder) / name for name in (files_of(folder) if files is None else files)}
    if card is not None:
        contents["README.md"] = str(card).encode()
    additions = [CommitOperationAdd(prefix + name, source) for name, source in contents.items()]
    if revision is not None and not create_pr and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    deletions = _former_weights(api, repo_id, revision, {addition.path_in_repo for addition in additions})
    return api.create_commit(
        repo_id,
        [*deletions, *additions],
        commit_message=commit_message or "Upload with uniwetok-hf",
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
    )


def _former_weights(api: HfApi, repo_id: str, revision: str | None, new: set[str]) -> list[CommitOperationDelete]:
    """Weight files in the folders of new weight files that the new ones don't replace."""
    folders = {os.path.dirname(path) for path in new if WEIGHTS.fullmatch(os.path.basename(path))}
    if not folders:
        return []
    return [
        CommitOperationDelete(path)
        for path in api.list_repo_files(repo_id, revision=revision)
        if path not in new and os.path.dirname(path) in folders and WEIGHTS.fullmatch(os.path.basename(path))
    ]
