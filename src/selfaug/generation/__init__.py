"""What the base model writes before training: requests, backends that answer them, and the store of replies."""
