"""Clones: cells of one barcode, which show what became of a cell.

In go an AnnData with barcodes and fate probabilities of any kernel. :func:`judge_by_clones` says how far they agree
with what sisters became, :func:`choose_by_clones` chooses settings by that, and :func:`update_by_clones` takes the
outcomes of sisters as evidence.
"""

from cellrank_velot.clones.choose import CloneChoice, choose_by_clones
from cellrank_velot.clones.judge import CloneJudgement, judge_by_clones
from cellrank_velot.clones.update import CloneFates, update_by_clones

__all__ = ["CloneChoice", "CloneFates", "CloneJudgement", "choose_by_clones", "judge_by_clones", "update_by_clones"]


def __dir__() -> list[str]:
    return __all__
