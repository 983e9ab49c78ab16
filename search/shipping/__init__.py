"""What is sent to a cluster with a search (the user's folder, feedrate itself, environment variables), and what must not be."""
