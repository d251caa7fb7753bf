"""The leaderboard's web page: reads the three repositories, shows them, and takes submissions.

Everything that is shown is a function of the board, as it was read last, and of the view, which is the address of the
page. The process holds no token that it does not need, loads no model and runs no code of others.
"""
