"""Tasks of lm-evaluation-harness: a folder for each, YAML first, and the sample set."""
