"""Plans of many runs, and carrying them out."""
