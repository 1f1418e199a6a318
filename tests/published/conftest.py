"""The code of the checkpoints is copied into them, and is no module of the tests."""

collect_ignore = ["code"]
