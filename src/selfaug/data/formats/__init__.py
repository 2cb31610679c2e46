"""One file per data set format: rows in, records out."""
