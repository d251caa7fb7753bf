"""Watching memory during a run: `parcontrol.diagnostics.memory`."""

from parcontrol.diagnostics.memory import MemoryMonitor

__all__ = ["MemoryMonitor"]
