"""The parts of a causal language model of `transformers`, and checks that the model behaves as the core assumes."""
