"""The command line: parse, call, exit code. Heavy imports stand inside the call."""
