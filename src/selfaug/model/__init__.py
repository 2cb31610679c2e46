"""What a causal language model of `transformers` is made of, and checks that it does what we take it for."""
