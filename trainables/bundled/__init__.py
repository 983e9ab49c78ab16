"""The workloads that come with feedrate: images, objects and table."""
