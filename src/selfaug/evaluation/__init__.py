"""Measurement of what fine-tuning gained and lost: base and tuned model on the same prompts, with intervals."""
