"""Fates: where a process begins and where it ends.

In go a transition matrix, the neighbour graph and a time. Out come the names of the cells of each state, in the form
that CellRank's estimators take. From fates come the trends of genes along lineages.
"""

from cellrank_velot.fates.absorption import expected_visits
from cellrank_velot.fates.ends import EndOptions, Ends, TerminalStates, find_ends, terminal_states
from cellrank_velot.fates.intervals import IntervalOptions, absorption_probabilities, fate_intervals
from cellrank_velot.fates.stability import with_stability
from cellrank_velot.fates.states import SinkOptions, SourceOptions, suggest_initial_states
from cellrank_velot.fates.trends import GeneTrends, TrendOptions, fit_trends

__all__ = [
    "EndOptions",
    "Ends",
    "GeneTrends",
    "IntervalOptions",
    "SinkOptions",
    "SourceOptions",
    "TerminalStates",
    "TrendOptions",
    "absorption_probabilities",
    "expected_visits",
    "fate_intervals",
    "find_ends",
    "fit_trends",
    "suggest_initial_states",
    "terminal_states",
    "with_stability",
]
