"""Figures: of one run, and of many."""

from alignlab.plots.run import cost_among, draw_counts, draw_curves, draw_dial, draw_profile

__all__ = ["cost_among", "draw_counts", "draw_curves", "draw_dial", "draw_profile"]
