"""Results, the cost of inference and the scaling law. Nothing here imports torch."""
