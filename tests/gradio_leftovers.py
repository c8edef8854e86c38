"""What Gradio leaves behind, for the files of tests that start a page: they import `collected`."""

import gc
import time

import pytest


@pytest.fixture(scope="module", autouse=True)
def collected():
    """Gradio's loops and sockets, after all else of this file, while its filter of warnings holds."""
    yield
    for _ in range(3):
        gc.collect()
        time.sleep(0.1)
