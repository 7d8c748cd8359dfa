"""Sessions on a Ray cluster: each node packs a model once, for all its actors.

    pip install '.[ray]' && python examples/ray_actors.py [--nodes 2] [--actors 2] [--model MODEL --input BATCHES.npy]

Starts a real Ray cluster with several nodes on this machine, each with a cache directory of its own, as machines have. A
pool of actors is spread over the nodes; each creates a session. Batches of tensors go in, results come out. What each node
packed, how long its actors took to start and how much memory they have is printed.
"""

import os
import sys
import time
from typing import Any

import numpy as np
import ray
from common import Work, Worker, add_batches, batches, parser, tell, work
from ray.cluster_utils import Cluster
from ray.util.actor_pool import ActorPool

__all__ = ["main", "serve"]

_OBJECT_STORE_BYTES = 100 << 20  # of each node


def serve(asked: Work, inputs: list[np.ndarray], nodes: int, actors: int) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Run batches through a model on a cluster of its own.

    Args:
        asked: The model, which all nodes can open.
        inputs: What is run through it.
        nodes: How many nodes the cluster has.
        actors: How many sessions each node has.

    Returns:
        The results, in the order of the batches, and the facts of every actor.
    """
    names = [f"node-{number}" for number in range(nodes)]
    cluster = Cluster()
    try:
        for name in names:
            # A resource of its own makes Ray put an actor on this node and no other.
            cluster.add_node(
                num_cpus=actors,
                resources={name: actors},
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
            for _ in range(actors)
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
    add_batches(described)
    given = described.parse_args(arguments)
    with work(given) as asked:
        start = time.perf_counter()
        results, facts = serve(asked, batches(given), given.nodes, given.actors)
        print(f"{len(results)} batches through {len(facts)} actors in {time.perf_counter() - start:.1f} s, cluster included")
    tell(given, results, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
