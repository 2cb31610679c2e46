"""Generation by the base model before training: requests, backends that answer them, and the store of replies."""
