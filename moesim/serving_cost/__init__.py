"""What serving costs: an offer of one's own (`offers`: the load that a replica carries within the
SLO, and the replicas that a day asks for) beside managed APIs and smaller models (`study`).
"""

from moesim.serving_cost.study import CostStudy, cost_study

__all__ = ["CostStudy", "cost_study"]
