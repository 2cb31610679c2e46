"""Where the base's outputs come from during training."""
