"""From a row of any supported format to token ids and labels."""
