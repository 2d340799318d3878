"""What studies find, as plain data: what their tables, pages and JSON show, and nothing else.

A study (replications, attribution, placement, plan, ...) fills these; the report draws them without
knowing how they were found.
"""
