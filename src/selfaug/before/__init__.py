"""What the base model is asked before the first step: texts, scores, Fisher information, a start, generated rows."""
