"""How far fine-tuning moved a model's distribution, where, and whether forgetting follows the shift."""
