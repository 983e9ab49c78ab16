"""What travels to a cluster with a search: the user's folder, feedrate itself, variables; and what must not."""
