"""Rewards of images, one a file."""
