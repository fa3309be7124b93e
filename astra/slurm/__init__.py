"""Slurm: its commands, limits and scripts, and what its answers mean."""
