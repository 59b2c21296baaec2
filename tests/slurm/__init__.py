"""Sweeps on a cluster: a real SLURM of one node that the tests start themselves."""
