"""What one brings to an architecture review: every study of a scenario, and one page of it all.

`depth` says how much is simulated, `stages` are the studies, `study` runs them, `finished` is what
comes out.
"""

from moesim.reviewing.depth import DEPTHS, QUICK, THOROUGH, USUAL, Depth
from moesim.reviewing.finished import Review
from moesim.reviewing.study import review

__all__ = ["DEPTHS", "QUICK", "THOROUGH", "USUAL", "Depth", "Review", "review"]
