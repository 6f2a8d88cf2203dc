"""DriveU Traffic Light Data (DTLD) to a clean, leak-free, traceable YOLO dataset.

The command line is `dtld`; the same as a library: `dtld_tools.pipeline.stages.prepare`, `convert`, `tile`, `augment`,
`split`, with `dtld_tools.labels.parse.read_labels` and the value types of `dtld_tools.types`.
"""
