"""Reports of what runs gained, lost and cost: a page for people, and a gate with an exit code for machines."""
