# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Pushing a model with this package's card."""

import importlib
import importlib.util
from pathlib import Path


class UniWeTokCardMixin:
    """Puts the package's card in place of the libraries' generic one when a model is pushed to the Hub.

    The modeling files also work as remote code, without the package; then the generic card stays.
    """

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        if importlib.util.find_spec("uniwetok_hf") is not None:
            cards = importlib.import_module("uniwetok_hf.cards")
            cards.model_card(self, repo_id).save(Path(working_dir) / "README.md")
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


__all__ = ["UniWeTokCardMixin"]
