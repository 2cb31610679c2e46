"""The lab: an offline world, small instruct models trained in it, and a RAG task that makes them forget."""
