"""The trainer, its configuration, its rows and its callbacks."""
