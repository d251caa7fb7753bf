"""Questions with short answers, scored by exact match."""
