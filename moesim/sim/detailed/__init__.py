"""The detailed mode: layers of every rank as events, and the oracle of the fast step mode.

It takes from the engine the composed batch, the routing trace and the tables of costs, and works
everything else out anew: nothing here calls the compiled pricing (sim/cost.py and below) that it
checks. See docs/explanation/detailed-mode.md.
"""
