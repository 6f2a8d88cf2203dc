"""The stages, from a plan to the files of a dataset."""
