"""What another placement of experts would do: fitted, scored by replay, simulated, explained.

`place_study` is the door; own policies are functions of a `PlacementTask`.
"""

from moesim.findings.placement import Candidate, Gain
from moesim.placement.task import PlacementTask
from moesim.what_if.study import PlacementStudy, place_study

__all__ = ["Candidate", "Gain", "PlacementStudy", "PlacementTask", "place_study"]
