"""Errors, files, statistics, the terminal and HTTP endpoints, for every part of the package."""
