"""Measured kernels of aiconfigurator-core: finding, reading, judging and compacting its tables."""
