"""From hidden states to one loss and one hidden-state gradient, without ever holding full logits."""
