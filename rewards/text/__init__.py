"""Rewards of texts, one a file."""
