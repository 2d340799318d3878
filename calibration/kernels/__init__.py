"""Kernels measured on the user's own GPU, written as a profile that a run can use."""
