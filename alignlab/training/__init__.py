"""Training: stages, their objectives, the one trainer, and the session they run in."""
