"""The status of plans, pages and rows, from the database and Slurm together."""
