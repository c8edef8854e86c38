"""The recipe's tests use the fixtures of the library's."""

from conftest import accelerate_forgets, ctrl_c, fixtures


__all__ = ["accelerate_forgets", "ctrl_c", "fixtures"]
