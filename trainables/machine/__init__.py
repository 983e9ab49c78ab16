"""What the host is, and what it was doing while a trial was timed."""
