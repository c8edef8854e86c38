"""Few examples, the same ones every time; tests marked `slow` take more of them."""

import pytest
from hypothesis import HealthCheck, settings


# The fixtures of these tests hold what no example changes.
COMMON = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("few", max_examples=25, **COMMON)
settings.load_profile("few")


@pytest.fixture(scope="session")
def pipe():
    """A tiny pipeline that no test changes."""
    from tiny_models import build_tiny_pipeline

    return build_tiny_pipeline()
