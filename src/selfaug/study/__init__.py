"""Studies: a grid of methods, settings and seeds, with its runs, scores, table and figure."""
