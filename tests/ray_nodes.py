"""Nodes of a local Ray cluster that come up on a busy machine, too."""

from typing import Any

from ray.cluster_utils import Cluster

_ATTEMPTS = 3


def add_node(cluster: Cluster, **settings: Any) -> None:
    """Add a node, the head first; again where Ray gave up.

    Ray waits 15 s for the agent of a node, whose imports take longer while another process trains.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            cluster.add_node(**settings)
            return
        except Exception as error:
            if attempt == _ATTEMPTS or "timed out during startup" not in str(error):
                raise
