"""Makes the loader of one setting, watches what it hands out, and knows what an epoch of it is."""
