"""Figures: of one run, and of many."""

from alignlab.plots.run import draw_counts, draw_curves, draw_dial, draw_profile

__all__ = ["draw_counts", "draw_curves", "draw_dial", "draw_profile"]
