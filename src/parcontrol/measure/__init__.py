"""Measuring what inference costs on the present device, beside what the cost model predicts."""
