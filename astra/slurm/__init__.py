"""Slurm: its commands, limits and scripts, and what its answers mean.

Another scheduler would begin with what `submit`, `resume`, `element` and `night` call of `client`,
`limits`, `script` and `parse`. What else is Slurm's: the variables of a job (element/claiming.py),
dependencies and begin times (night/finalizer.py), and the states that retry rules are named by.
"""
