"""The demonstration run: a real small model, a corpus every Python has, one training run."""
