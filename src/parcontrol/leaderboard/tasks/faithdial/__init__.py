"""Replies that say more than the knowledge they rest on, or do not."""
