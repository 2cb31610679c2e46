"""The plan of an optimiser step: which sequences and tokens are aligned, and what the reference pass sees."""
