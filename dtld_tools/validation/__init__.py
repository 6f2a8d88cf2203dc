"""Proof that a dataset is sound."""
