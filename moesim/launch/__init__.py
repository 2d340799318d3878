"""Launch commands of serving engines: read into scenarios, and written from them.

A command is text from a stranger: it is taken apart, never executed. What each flag comes to is
decided in one table for each engine (vllm.csv, sglang.csv, trtllm.csv), which the reference page is
made from; what the understood ones mean together stands in one module for each engine.
"""

from __future__ import annotations

from moesim.launch.reading import Reading, read_commands
from moesim.launch.writing import LaunchText, launch_command

__all__ = ["LaunchText", "Reading", "launch_command", "read_commands"]
