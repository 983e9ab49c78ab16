"""Which settings exist, and how Ray Tune and Optuna spell them."""
