"""The memory of a search and its proposals; with space/ the only place that imports Optuna."""
