"""WikiText, with a standard error."""
