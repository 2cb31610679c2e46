"""The objective: one loss and one hidden-state gradient from hidden states, without ever holding full logits."""

from selfaug.objective.head import LMHead
from selfaug.objective.plain import plain
from selfaug.objective.rows import Objective, Rows, WeightedTerm
from selfaug.objective.sweep import sweep
from selfaug.objective.terms import ALIGNMENT_TERMS, NLL, BaseToTuned, JensenShannon, RowTerm, TunedToBase

__all__ = [
    "ALIGNMENT_TERMS",
    "NLL",
    "BaseToTuned",
    "JensenShannon",
    "LMHead",
    "Objective",
    "RowTerm",
    "Rows",
    "TunedToBase",
    "WeightedTerm",
    "plain",
    "sweep",
]
