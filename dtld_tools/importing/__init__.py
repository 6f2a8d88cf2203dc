"""Datasets of others in, frames out, as if label files of DTLD had said so: YOLO's data.yaml and COCO JSON."""
