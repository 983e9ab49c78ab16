"""One search as plain logic: what to measure next, what to write down, when to stop."""
