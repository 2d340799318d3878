"""Which causes add how much to latency and to its spread: a scenario run with causes switched off.

`causes` is the catalogue of what can be switched off; `setting` a scenario with some of it off;
`extent` how much of it is run; `samples` what is kept of a run, `store` on disk; `shapley` and
`resampling` the arithmetic; `study` puts them together, `telling` says what it found.
"""

from moesim.attribution.attribution import Attribution
from moesim.attribution.study import attribute

__all__ = ["Attribution", "attribute"]
