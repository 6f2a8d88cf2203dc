"""Runs that are there: their records, and what follows from several of them."""
