"""Measured end-to-end runs: what was measured, how it was run, and which labels can be trusted."""
