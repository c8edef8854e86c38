# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Silences warnings of other libraries that are of no use to the user."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def without_warning(logger_name: str, words: str) -> Iterator[None]:
    """Drops the messages of a logger that contain `words`."""
    logger = logging.getLogger(logger_name)

    def is_wanted(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)
