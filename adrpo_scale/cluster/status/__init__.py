"""The command `status`: the state of runs, read from their folders and Slurm's queue."""
