"""Times one setting."""
