"""An offline world, a small instruct model made in it, and a RAG task that makes the model forget."""
