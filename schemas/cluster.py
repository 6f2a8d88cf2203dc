"""A Ray cluster, joined in one way by both commands: no usage statistics, no dashboard, no output of workers.

In: the address of one, or none for one that is started on this machine. Out: the module `ray`, connected.
Invariant: nothing is sent but between the cluster's nodes, and what was started here has ended afterwards.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class ClusterError(ValueError):
    """Ray is not installed, or there is no such cluster; the message names the option."""


@contextmanager
def joined(address: str | None, cores: int) -> Iterator[Any]:
    """The module `ray` within a cluster, or without an address on ``cores`` of this machine. Raises ClusterError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use over the network unless told not to
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ClusterError("--executor ray: Ray is not installed; pip install 'dtld-kd[ray]'") from error
    try:
        if address is None:
            ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ClusterError(f"--ray-address: {address}: {reason}; expected a running cluster, such as auto") from error
    try:
        yield ray
    finally:
        ray.shutdown()
