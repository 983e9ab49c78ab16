"""The commands, one file per command: they parse the arguments, run the work and print the answer."""
