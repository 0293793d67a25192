"""Where do tests find a Ray cluster? Two nodes on this machine, begun once for each file of tests."""

import os

import pytest

SMALL = {"object_store_memory": 80 * 2**20, "num_cpus": 1}
"""What a node has."""


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with one CPU each, on this machine, to which this process is connected."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(initialize_head=True, head_node_args={**SMALL, "include_dashboard": False})
    made.add_node(**SMALL)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()
