"""What can go wrong, as one tree. Every message is one line: where, what was got, what was expected, what to do.

DtldError                 exit 1: the input or the environment is wrong
|-- LabelError            a label file, or a path inside it
|-- RulesError            a rule table
|-- ImageError            a frame or image that cannot be read
|-- DatasetError          a dataset on disk, or the folder that should hold one
`-- UsageError            exit 2: options that contradict each other or are out of range
"""


class DtldError(Exception):
    """Base of all errors raised on purpose; the command line prints it as one line."""


class LabelError(DtldError):
    """A label file is not what the format says, or names a file outside the dataset's root."""


class RulesError(DtldError):
    """A rule table does not satisfy its schema or names an unknown attribute."""


class ImageError(DtldError):
    """An image is missing, truncated or of an unexpected kind."""


class DatasetError(DtldError):
    """A dataset on disk is incomplete or inconsistent, or the output folder holds something else."""


class UsageError(DtldError):
    """An option's value is out of range, or options contradict each other."""
