"""Measurement of the shift: how far fine-tuning moved a model's distribution, and how that relates to forgetting."""
