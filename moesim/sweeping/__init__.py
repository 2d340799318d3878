"""Many runs of one scenario: which points, under which keys, where they run, what is kept.

`values`, `points`, `point_files` say what is run; `keys` what a run depends on; `outcomes` run one
and keep its figures; `store` is the disk; `engines` are processes and clusters; `running` and
`study` put it together, `table` is what comes out.
"""

from __future__ import annotations

from moesim.sweeping.study import Sweep, sweep
from moesim.sweeping.values import Between

__all__ = ["Between", "Sweep", "sweep"]
