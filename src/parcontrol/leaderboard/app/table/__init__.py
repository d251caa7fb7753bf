"""The table of all models."""
