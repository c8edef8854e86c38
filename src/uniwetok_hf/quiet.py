# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Warnings of the libraries below that are of no use to whoever reads our output."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def without_warning(logger_name: str, words: str) -> Iterator[None]:
    """Leaves out what the logger says with these `words` in it."""
    logger = logging.getLogger(logger_name)

    def is_wanted(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)
