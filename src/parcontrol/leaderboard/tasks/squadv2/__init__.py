"""Questions about a passage, some of which it does not answer."""
