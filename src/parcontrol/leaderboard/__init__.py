"""The Hallucinations Leaderboard: registry and tasks, store, queue, submission, worker, results table."""
