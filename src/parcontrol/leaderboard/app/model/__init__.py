"""A model's own view."""
