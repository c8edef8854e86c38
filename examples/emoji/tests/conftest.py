"""The recipe's tests use the fixtures of the library's."""

from conftest import accelerate_forgets, fixtures


__all__ = ["accelerate_forgets", "fixtures"]
