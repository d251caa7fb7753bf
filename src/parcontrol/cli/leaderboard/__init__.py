"""`parcontrol leaderboard …`: one module for each subcommand."""
