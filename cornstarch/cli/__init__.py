"""The commands, one file each: `python -m cornstarch.cli.<command>`."""
