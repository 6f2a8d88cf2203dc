"""DTLD label files in, lights out."""
