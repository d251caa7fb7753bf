"""Kernels of our own, where torch's are far from what a processor can do."""
