"""What can go wrong, as one tree. Every message is one line: where, what was got, what was expected, what to do.

KdError                   exit 1: the input or the environment is wrong
|-- ModelError            a teacher or student that is no model, or one that this project cannot train
|-- DataError             a data.yaml or the images behind it
|-- RunError              a run folder that exists, is missing, or belongs to another configuration
|-- PlanError             a plan of kd sweep, or a folder that holds the runs of another one
|-- DistillationError     a distillation term that is off: zero, not finite, or a teacher not worth imitating
`-- UsageError            exit 2: options that contradict each other or are out of range
"""


class KdError(Exception):
    """Base of all errors raised on purpose; the command line prints it as one line."""


class ModelError(KdError):
    """A file is no Ultralytics detector, or one that cannot play the part asked of it."""


class DataError(KdError):
    """A data.yaml is unreadable, or there are no images or labels behind it."""


class RunError(KdError):
    """A run folder exists already, is missing or incomplete, or was made by another configuration."""


class PlanError(KdError):
    """A plan is not what its schema says, or contradicts itself or the folder that it is to be carried out in."""


class DistillationError(KdError):
    """Distillation would not do what was asked, so it stops instead of being silently off."""


class UsageError(KdError):
    """An option's value is out of range, or options contradict each other."""
