"""Operator times from measured kernels, with their provenance."""
