# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Pushing a model with this package's card."""

import importlib
import importlib.util
import os
from pathlib import Path


class UniWeTokCardMixin:
    """Puts the package's card in place of the libraries' generic one when a model is pushed to the Hub, and pushes it
    in one commit that leaves no weights of a former push behind.

    The modeling files also work as remote code, without the package; then the libraries' own upload and card stay.
    """

    def _upload_modified_files(self, working_dir, repo_id, files_timestamps, **kwargs):
        if importlib.util.find_spec("uniwetok_hf") is None:
            return super()._upload_modified_files(working_dir, repo_id, files_timestamps, **kwargs)
        cards, hub = (importlib.import_module(f"uniwetok_hf.{name}") for name in ("cards", "hub"))
        card = cards.card_to_push(cards.model_card(self, repo_id), Path(working_dir) / "README.md")
        card.save(Path(working_dir) / "README.md")
        written = {
            name
            for name in os.listdir(working_dir)
            if os.path.getmtime(os.path.join(working_dir, name)) > files_timestamps.get(name, 0)
        }
        files = [path for path in hub.files_of(working_dir) if path.split("/")[0] in written]
        kwargs["commit_message"] = kwargs.get("commit_message") or f"Upload {type(self).__name__}"
        return hub.upload(working_dir, repo_id, files, **kwargs)


__all__ = ["UniWeTokCardMixin"]
