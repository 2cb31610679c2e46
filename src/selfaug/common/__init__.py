"""Errors, the terminal and HTTP endpoints, for every part of the package."""
