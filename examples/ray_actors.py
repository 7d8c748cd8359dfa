"""Sessions on a Ray cluster: each node packs a model once, for all its actors.

    pip install '.[cpu,ray]' && python examples/ray_actors.py [--nodes 2] [--actors 2] [--model MODEL --input BATCHES.npy]

Starts a real Ray cluster with several nodes on this machine, each with a cache directory of its own, as machines have. A
pool of actors is spread over the nodes; each creates a session. Batches of tensors go in, results come out. What each node
packed, how long its actors took to start and how much memory they have is printed.
"""

import os
import sys
from argparse import Namespace
from typing import Any

import numpy as np
import ray
from common import Work, Worker, parser, run_batches
from ray.cluster_utils import Cluster
from ray.util.actor_pool import ActorPool

__all__ = ["main", "serve"]

_OBJECT_STORE_BYTES = 100 << 20  # of each node


def serve(asked: Work, inputs: list[np.ndarray], given: Namespace) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Run batches through a model, which all nodes can open, on a cluster of its own."""
    names = [f"node-{number}" for number in range(given.nodes)]
    cluster = Cluster()
    try:
        for name in names:
            # A resource of its own makes Ray put an actor on this node and no other.
            cluster.add_node(
                num_cpus=given.actors,
                resources={name: given.actors},
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
            )
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        worker = ray.remote(Worker)
        started = [
            worker.options(num_cpus=1, resources={name: 1}).remote(
                asked.model, os.path.join(asked.folder, name), asked.share, name
            )
            for name in names
            for _ in range(given.actors)
        ]
        facts = ray.get([actor.facts.remote() for actor in started])
        results = list(ActorPool(started).map(lambda actor, batch: actor.run.remote(batch), inputs))
        return results, facts
    finally:
        ray.shutdown()
        cluster.shutdown()


def main(arguments: list[str] | None = None) -> int:
    """Serve some batches and tell how it went."""
    described = parser("Sessions on a Ray cluster: each node packs once for all its actors.")
    described.add_argument("--nodes", type=int, default=2, help="nodes of the cluster (default 2)")
    described.add_argument("--actors", type=int, default=2, help="sessions of each node (default 2)")
    return run_batches(described, serve, arguments)


if __name__ == "__main__":
    sys.exit(main())
