"""Claims that are supported or refuted."""
