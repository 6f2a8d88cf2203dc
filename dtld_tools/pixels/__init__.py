"""Frames as pixels: decoding, orientation, augmentation."""
