"""Which images a dataset gets: sources, splits, tiles, anchors."""
