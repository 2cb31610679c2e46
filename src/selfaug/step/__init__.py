"""One optimiser step: which tokens are aligned, both passes, the objective, and what is measured."""
