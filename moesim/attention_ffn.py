"""What a deployment that gives attention and FFN GPUs of their own may not ask for besides."""

from __future__ import annotations

import numpy as np

from moesim.errors import InputError
from moesim.hardware import Cluster
from moesim.scenario import Scenario
from moesim.sharding import APART, Sharding


def check_attention_ffn(scenario: Scenario, sharding: Sharding, cluster: Cluster) -> None:
    """Raise InputError for choices that belong to GPUs which compute both."""
    if not sharding.expert_gpus:
        return
    of = scenario.deployment
    if of.exchange != "auto":
        raise InputError(
            "deployment.exchange",
            f"must be left out with {APART}, whose transfers are chosen there",
            of.exchange,
        )
    if of.overlap.policy != "none":
        rule = f"must be none with {APART}: micro-batches hide its transfers"
        raise InputError("deployment.overlap.policy", rule, of.overlap.policy)
    for field, given in (
        ("deployment.expert_offload", of.expert_offload),
        ("faults", scenario.faults),
    ):
        if given is not None:
            raise InputError(field, f"cannot be combined with {APART}")
    group_domain = cluster.domains()[: sharding.attention_gpus].reshape(-1, sharding.attention_tp)
    if (np.ptp(group_domain, axis=1) > 0).any():
        raise InputError(
            "deployment.parallelism.attention_tp",
            f"must keep each group within a scale-up domain ({cluster.scale_up_domain} GPUs) with "
            f"{APART}",
            sharding.attention_tp,
        )


def check_lies_alike(sharding: Sharding, cluster: Cluster, replicas: int) -> None:
    """One set of step costs serves all replicas: the same pairs of GPUs must share a domain.

    Raises InputError.
    """
    domain = cluster.domains()[: replicas * sharding.gpus].reshape(replicas, sharding.gpus)
    if (domain - domain[:, :1] != domain[0] - domain[0, 0]).any():
        raise InputError(
            f"{APART}.expert_gpus",
            f"must let all replicas lie alike on scale-up domains of {cluster.scale_up_domain} "
            f"GPUs; a replica has {sharding.gpus} GPUs with",
            sharding.expert_gpus,
        )
