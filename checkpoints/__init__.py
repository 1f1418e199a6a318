"""The embedded checkpoints, a folder each; `redge_guidance.hub` knows their names."""
