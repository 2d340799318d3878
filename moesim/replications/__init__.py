"""One scenario, or several with the same draws, run many times.

`runner` runs a replication, `kept` is what stays of it, `study` puts them together, `paired`
compares deployments.
"""
