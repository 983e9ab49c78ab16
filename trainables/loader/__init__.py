"""Makes the loader of one setting, watches the batches that it delivers, and knows the size of its epochs."""
