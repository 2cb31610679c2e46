"""What did fine-tuning gain, and what did it lose? Base and tuned on the same prompts, with intervals."""
