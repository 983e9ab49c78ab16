"""Where a trial hangs, and why a batch failed."""
