"""Plots over all models."""
