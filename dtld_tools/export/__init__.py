"""A dataset for other programs and for the eye."""
