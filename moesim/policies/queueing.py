"""Who of the waiting requests of an attention rank is next."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from moesim.spec import Spec, by_policy


class FirstCome(Spec):
    """In order of arrival."""

    policy: Literal["fcfs"] = "fcfs"


class ByPriority(Spec):
    """The class with the lowest `priority` first, then in order of arrival.

    vLLM's `--scheduling-policy priority`: when memory is short, the running request of highest
    (priority, arrival) leaves. Nobody leaves for want of a seat.
    """

    policy: Literal["priority"] = "priority"


class VirtualTokenCounter(Spec):
    """The tenant that has been given least, a prompt and an output token counted by weight.

    Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024; weights 1 and 2 there.
    """

    policy: Literal["vtc"] = "vtc"
    input_weight: float = Field(1.0, gt=0.0, le=1e6)
    output_weight: float = Field(2.0, gt=0.0, le=1e6)


Queue = FirstCome | ByPriority | VirtualTokenCounter
QueueChoice = Annotated[
    Queue, by_policy("queue policy", FirstCome, ByPriority, VirtualTokenCounter)
]
