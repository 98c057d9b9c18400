"""The command line of a run: flags, exit codes and signals."""
