"""A disk on which no large file fits."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def files_limited(size: int) -> Iterator[None]:
    """No file can be longer than `size` bytes: writing fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
