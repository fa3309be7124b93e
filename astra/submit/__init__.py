"""Submit pages as Slurm arrays, or run them as local processes."""
