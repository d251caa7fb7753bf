"""A metric against P, for models that differ only in P."""
