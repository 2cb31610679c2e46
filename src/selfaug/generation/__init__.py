"""What does the base model itself write before training? Requests, who answers them, and what was answered already."""
