"""From what was asked to what will be searched."""
