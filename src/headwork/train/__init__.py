"""Training: recipes, the loop, and what is measured on a finished network."""
