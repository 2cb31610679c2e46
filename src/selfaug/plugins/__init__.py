"""Plugins of other trainers: each reads its host's configuration and calls :func:`selfaug.attach`."""
