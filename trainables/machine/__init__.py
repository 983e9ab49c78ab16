"""Facts about the host, and what else it was doing while a trial was timed."""
