"""Schedulers with diffusers' interface."""

from .scheduling_binary_flow import BinaryFlowScheduler


__all__ = ["BinaryFlowScheduler"]
