"""Ways of fine-tuning that may keep more; a registry by name."""
