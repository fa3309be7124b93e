"""Slurm: its commands, limits and scripts, and what its answers mean.

To support another scheduler, begin with the functions of `client`, `limits`, `script` and `parse`
that `submit`, `resume`, `element` and `night` call. Also specific to Slurm are the variables of a
job (element/claiming.py), dependencies and begin times (night/finalizer.py), and the states that
name the retry rules.
"""
