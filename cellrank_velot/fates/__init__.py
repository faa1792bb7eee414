"""Fates: where a process begins and where it ends.

In go a transition matrix, the neighbour graph and a time. Out come the names of the cells of each state, in the form
that CellRank's estimators take.
"""

from cellrank_velot.fates.states import SinkOptions, SourceOptions, suggest_initial_states, suggest_terminal_states

__all__ = ["SinkOptions", "SourceOptions", "suggest_initial_states", "suggest_terminal_states"]
