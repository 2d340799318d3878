"""How sure figures are: whether a run settles (`steady_state`), what was observed (`observations`),
intervals from its parts (`intervals`), and what differences let one say (`verdicts`).
"""
