"""A grid of methods, strengths and seeds: its runs, its numbers, its table and picture."""
