"""Accompanies a training to its end, that of a command or of a framework: finds the loader that it reads, and lets it be tuned on the way."""
