"""Capture, importers, fits and validation; the only package here that may use torch."""
