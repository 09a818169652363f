"""What the methods are measured against, in the same loop, on the same rows, with the same report.

One module a baseline: its table of the recipe, and what it trains. They know a prepared run; they do not know files.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from epigraph.train.baselines.adapter import ADAPTER, AdapterPart
from epigraph.train.baselines.autoprompt import AUTOPROMPT, AutoPromptPart
from epigraph.train.baselines.base import Baseline, BaselineConfig
from epigraph.train.baselines.constant import LEAD, MAJORITY, LeadPart, MajorityPart
from epigraph.train.baselines.in_context import IN_CONTEXT, InContextPart
from epigraph.train.baselines.linear_probe import LINEAR_PROBE, LinearProbePart
from epigraph.train.baselines.lora import LORA, LoraPart
from epigraph.train.baselines.peft_peers import CONFIGS, PEFT_PEER, PeftPart
from epigraph.train.baselines.untouched import UNTOUCHED, UntouchedPart
from epigraph.train.baselines.weights import FULL, TOP, FullPart, TopPart

__all__ = ["BASELINES", "Baseline", "BaselineConfig", "BaselinePart"]

# A new baseline is a new member here, and an entry below.
BaselinePart = (
    UntouchedPart
    | FullPart
    | TopPart
    | AdapterPart
    | LoraPart
    | LinearProbePart
    | InContextPart
    | MajorityPart
    | LeadPart
    | AutoPromptPart
    | PeftPart
)

BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "untouched": UNTOUCHED,
        "full": FULL,
        "top": TOP,
        "adapter": ADAPTER,
        "lora": LORA,
        "linear-probe": LINEAR_PROBE,
        "in-context": IN_CONTEXT,
        "majority": MAJORITY,
        "lead": LEAD,
        "autoprompt": AUTOPROMPT,
        **dict.fromkeys(CONFIGS, PEFT_PEER),
    }
)
