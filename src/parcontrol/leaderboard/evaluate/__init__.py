"""Evaluating one model: what is loaded, in which process, on which tasks, and where results wait to be published."""
