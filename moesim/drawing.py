"""Draw: what a replication of a run draws anew besides its demand.

What stays unknown however long one simulates: which sequences the recording of the routing happens
to hold, and by how much predicted times are off. Draw `number` of a seed is the same whatever the
deployment, so that two deployments meet the same sequences and the same errors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.costs.residuals import Residuals, draw_residuals, with_residuals
from moesim.costs.step import StepCosts
from moesim.deployment import Deployment
from moesim.routing.trace import RoutingTrace
from moesim.scenario import Scenario
from moesim.sim.replay import Routes

ROUTING_STREAM = 1


@dataclass(frozen=True)
class Draw:
    """Draw `number` of `seed`.

    `routing`: sequences of a recorded trace are drawn with replacement, a generated trace is
    generated anew; else both stay those of `seed`. `calibration`: times are multiplied by drawn
    residuals.
    """

    seed: int
    number: int
    routing: bool = False
    calibration: bool = False

    @property
    def trace_seed(self) -> int:
        """Of a generated trace; the first draw's is the one that a run of `seed` has."""
        return self.seed + self.number if self.routing else self.seed

    def residuals(self, scenario: Scenario, deployment: Deployment) -> Residuals:
        """Factors on the deployment's times; all 1 unless calibration is drawn."""
        if not self.calibration:
            return Residuals()
        engine, gpu = scenario.deployment.engine, deployment.cluster.gpu.name
        measured = deployment.profile.kernels == "measured"
        return draw_residuals(engine, measured, gpu, self.seed, self.number)

    def costs(self, scenario: Scenario, deployment: Deployment, costs: StepCosts) -> StepCosts:
        """Step costs as they may be in truth."""
        if not self.calibration:
            return costs
        return with_residuals(costs, self.residuals(scenario, deployment))

    def deployment(self, scenario: Scenario, deployment: Deployment) -> Deployment:
        """The deployment whose host work before the scheduler takes as long as drawn."""
        if not self.calibration:
            return deployment
        of = self.residuals(scenario, deployment)
        overhead, factor = deployment.profile.overhead, of.host * of.step * of.prompt
        changed = overhead.model_copy(
            update={
                "arrival_s": overhead.arrival_s * factor,
                "arrival_token_s": overhead.arrival_token_s * factor,
            }
        )
        profile = deployment.profile.model_copy(update={"overhead": changed})
        return replace(deployment, profile=profile)

    def routes(self, routes: Routes, trace: RoutingTrace, recorded: bool) -> Routes:
        """The pieces that requests draw from: whole sequences, drawn with replacement within each
        domain of a recorded trace."""
        if not (self.routing and recorded):
            return routes
        rng = np.random.default_rng([self.seed, self.number, ROUTING_STREAM])
        drawn_Q = resampled_pieces(routes, trace, rng)
        return routes._replace(
            edge_Q=routes.edge_Q[drawn_Q],
            prompt_first_Q=routes.prompt_first_Q[drawn_Q],
            prompt_rows_Q=routes.prompt_rows_Q[drawn_Q],
            decode_first_Q=routes.decode_first_Q[drawn_Q],
            decode_rows_Q=routes.decode_rows_Q[drawn_Q],
        )


def resampled_pieces(
    routes: Routes, trace: RoutingTrace, rng: np.random.Generator
) -> NDArray[np.int64]:
    """[Q] piece that takes each piece's place: of the same domain of the trace."""
    first_Q = routes.prompt_first_Q
    sequence_Q = np.searchsorted(trace.sequence_start_S1, first_Q, side="right") - 1
    domain_Q = trace.domain_S[sequence_Q]
    drawn_Q = np.arange(first_Q.size)
    for start, stop in zip(
        routes.prompt_domain_start[:-1], routes.prompt_domain_start[1:], strict=True
    ):
        for domain in np.unique(domain_Q[start:stop]):
            alike = start + np.flatnonzero(domain_Q[start:stop] == domain)
            drawn_Q[alike] = rng.choice(alike, alike.size)
    return drawn_Q
