"""The memory of a search, and its proposals for the next setting. Only this room and space/ import Optuna."""
