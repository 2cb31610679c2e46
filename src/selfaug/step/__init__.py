"""One optimiser step: its micro-batches, both passes, the objective, and the meters of its sums and counts."""
