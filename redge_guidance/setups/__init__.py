"""A set-up as a file: models, rewards and settings by name, read and written as plain YAML."""
