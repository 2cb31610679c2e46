"""The use of the base model before the first step: scores, Fisher information, an adapter's start, generated rows."""
