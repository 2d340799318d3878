"""What bound the slowest steps, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from moesim.findings.attribution import SlowSteps, Where
from moesim.report.words import count, duration, percent, significant

PHRASES = {
    "prefill chunk": "prompt chunks",
    "kv-heavy rank": "long contexts",
    "expert": "hot experts",
    "expert miss": "experts outside GPU memory",
    "link": "exchanges between GPUs",
    "host": "the engine's own time",
    "batch": "larger batches",
}
LEAST_TOLD = 0.05


def where_words(bound_by: str, where: Where) -> str:
    """'layer 36, rank 3, expert 112'; '' where nothing is known."""
    if bound_by in ("expert", "expert miss") and where.layers:
        return f"layer {where.layers[0]}, rank {where.rank}, expert {where.expert}"
    if bound_by == "link" and where.link:
        return where.link + (f", rank {where.rank}" if where.rank >= 0 else "")
    if bound_by in ("prefill chunk", "kv-heavy rank") and where.rank >= 0:
        return f"attention rank {where.rank}"
    return ""


def cause_words(bound_by: str, where: Where) -> str:
    """'hot experts, most in layers 36 and 57 (in layer 36 on rank 3, whose expert 112 ...)'."""
    return f"{PHRASES[bound_by]}{_details(bound_by, where)}"


def cause_sentence(group: str, bound_by: str, share: float, where: Where) -> str:
    """One cause by itself, as a sentence."""
    of = f"the slowest {_which(group)} take beyond typical ones"
    return f"{percent(max(0.0, share))} of what {of} is {cause_words(bound_by, where)}."


def _which(group: str) -> str:
    return "steps" if group == "all steps" else group


def _details(bound_by: str, where: Where) -> str:
    if bound_by == "prefill chunk" and where.ranks:
        chunk = f"(the largest {significant(where.tokens, 3)} tokens in the median step"
        if where.ranks > 1 and where.mostly:
            chunk += f"; mostly on attention rank {where.rank}"
        return f"{' on a neighbouring rank' if where.ranks > 1 else ''} {chunk})"
    if bound_by == "kv-heavy rank" and where.ranks:
        on = ""
        if where.ranks > 1:
            on = f", mostly on attention rank {where.rank}" if where.mostly else ""
            on = on or f" on one of {where.ranks} attention ranks"
        return f"{on} (the longest {significant(where.tokens, 3)} tokens in the median step)"
    if bound_by in ("expert", "expert miss") and where.layers:
        layers = " and ".join(map(str, where.layers))
        plural = "s" if len(where.layers) > 1 else ""
        return (
            f", most in layer{plural} {layers} (in layer {where.layers[0]} on rank {where.rank}, "
            f"whose expert {where.expert} has {percent(where.expert_share)} of the tokens)"
        )
    if bound_by == "link" and where.link:
        on = f", most on rank {where.rank}" if where.mostly else ""
        return f" over {where.link} links{on}"
    if bound_by == "batch" and where.tokens:
        return f" ({count(where.tokens, 'token')} decoded on average)"
    return ""


def with_sentence(found: SlowSteps, places: Mapping[str, Where]) -> SlowSteps:
    """The findings with their sentence; `places` by cause."""
    first = (
        f"The slowest {percent(found.steps / found.of)} of {_which(found.group)} "
        f"({found.steps:,} of {found.of:,}) last {duration(found.mean_s)} on average, typical "
        f"ones {duration(found.typical_s)}."
    )
    told = [
        f"{percent(cause.share)} {cause_words(cause.bound_by, places[cause.bound_by])}"
        for cause in found.causes
        if cause.share >= LEAST_TOLD
    ]
    if told:
        first += f" Of the time beyond, {'; '.join(told)}."
    return replace(found, sentence=first)


def notes(slow: int, looked: int) -> tuple[str, ...]:
    """What was not looked at."""
    if looked == slow:
        return ()
    if not looked:
        return ("nobody looked at these steps: ranks, layers and experts are not known",)
    return (f"ranks, layers and experts are those of {looked} of the {slow} slowest steps",)
