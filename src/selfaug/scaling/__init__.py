"""The scaling of a trained LoRA's update, so that it keeps limits on what was forgotten."""
