"""Figures of one run: what a simulation leaves (`raw_run`), the tables that it becomes, and what is
computed from them. Pure functions; `moesim.results` puts them together.
"""
