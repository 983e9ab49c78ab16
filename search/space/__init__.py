"""Which settings a search may try, and how Ray Tune and Optuna represent them."""
