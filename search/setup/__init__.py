"""The preparation of a search: from the user's request and the workload to the settings that will be searched."""
