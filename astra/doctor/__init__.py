"""The checks of `astra doctor`: the machine, the database and Slurm."""
