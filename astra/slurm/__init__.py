"""All that is specific to Slurm: another scheduler needs the functions of `client` and `script`."""
