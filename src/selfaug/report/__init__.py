"""What did a run gain, lose and cost, and is that good enough? One page for people, one exit code for machines."""
