# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Pushing to the Hub: with this package's card, and on request with the code beside the weights.

What only the package can do is looked up when it is done, so that this file also works as remote code, without it.
"""

import importlib
import importlib.util
import json
import os
from pathlib import Path


class UniWeTokPushMixin:
    """Gives `push_to_hub` the option `include_code`."""

    def push_to_hub(self, repo_id: str, *, include_code: bool = False, **kwargs):
        """Uploads to the Hub; every other argument is the library's own.

        The revision that is pushed to holds no code and loads with the package, without `trust_remote_code`.

        Args:
            repo_id: name on the Hub.
            include_code: whether to write the branch `with-code` too: the same files and generated code, with which
                the Auto classes and `DiffusionPipeline` load it where the package is not installed.

        Raises:
            ValueError: for `include_code` together with `create_pr`, since a pull request is not a second branch.
            ImportError: for `include_code` where the package, which generates the code, is not installed.
        """
        if not include_code:
            return super().push_to_hub(repo_id, **kwargs)
        if kwargs.get("create_pr"):
            raise ValueError("`include_code` writes a branch of its own: it can't be used with `create_pr`.")
        if importlib.util.find_spec("uniwetok_hf") is None:
            raise ImportError("`include_code=True` needs the package that generates the code: install uniwetok-hf.")
        commit = super().push_to_hub(repo_id, **kwargs)
        code = importlib.import_module("uniwetok_hf.remote_code")
        code.push_code(commit.repo_url.repo_id, revision=commit.oid, token=kwargs.get("token"))
        return commit

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        self._forget_code(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _upload_folder(self, working_dir, *args, **kwargs):
        self._forget_code(working_dir)
        return super()._upload_folder(working_dir, *args, **kwargs)

    def _forget_code(self, working_dir):
        """What was loaded from `with-code` into the package's classes still names that code: drops the names."""
        if getattr(self, "_auto_class", None) is not None:
            return  # a class from a repository, which is saved together with its code
        for path in Path(working_dir).rglob("*config.json"):
            fields = json.loads(path.read_text(encoding="utf-8"))
            named = [part for part in (fields, fields.get("image_processor")) if part and part.pop("auto_map", None)]
            if named:
                path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class UniWeTokCardMixin(UniWeTokPushMixin):
    """Puts the package's card in place of the libraries' generic one when a model or a pipeline is pushed, and pushes
    it in one commit that leaves no weights of a former push behind.

    Without the package the libraries' own upload and card stay.
    """

    def _upload_modified_files(self, working_dir, repo_id, files_timestamps, **kwargs):
        if importlib.util.find_spec("uniwetok_hf") is None:
            return super()._upload_modified_files(working_dir, repo_id, files_timestamps, **kwargs)
        self._forget_code(working_dir)
        cards, hub = (importlib.import_module(f"uniwetok_hf.{name}") for name in ("cards", "hub"))
        if getattr(self, "_hf_peft_config_loaded", False):  # transformers pushes the active adapter alone
            card = cards.adapter_card(self.peft_config[self.active_adapters()[0]], repo_id)
        else:
            card = cards.model_card(self, repo_id)
        card = cards.card_to_push(card, Path(working_dir) / "README.md")
        card.save(Path(working_dir) / "README.md")
        written = {
            name
            for name in os.listdir(working_dir)
            if os.path.getmtime(os.path.join(working_dir, name)) > files_timestamps.get(name, 0)
        }
        files = [path for path in hub.files_of(working_dir) if path.split("/")[0] in written]
        kwargs["commit_message"] = kwargs.get("commit_message") or f"Upload {type(self).__name__}"
        return hub.upload(working_dir, repo_id, files, **kwargs)

    def _upload_folder(self, working_dir, repo_id, subfolder=None, **kwargs):
        if importlib.util.find_spec("uniwetok_hf") is None:
            return super()._upload_folder(working_dir, repo_id, subfolder=subfolder, **kwargs)
        self._forget_code(working_dir)
        cards, hub = (importlib.import_module(f"uniwetok_hf.{name}") for name in ("cards", "hub"))
        # The card is the repository's; a folder in it has none.
        card = (
            None if subfolder else cards.card_to_push(cards.model_card(self, repo_id), Path(working_dir) / "README.md")
        )
        kwargs["commit_message"] = kwargs.get("commit_message") or f"Upload {type(self).__name__}"
        return hub.upload(working_dir, repo_id, card=card, subfolder=subfolder, **kwargs)


__all__ = ["UniWeTokCardMixin", "UniWeTokPushMixin"]
