"""Where the records of each step come from."""
