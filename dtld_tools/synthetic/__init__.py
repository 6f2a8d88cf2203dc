"""Drawn frames in the layout of DTLD."""
