"""The form to submit a model, who may, and the queue."""
