"""How far has fine-tuning moved a model's distribution, where, and does forgetting follow?"""
