"""One `ctpo train` run, from the recipe to the saved model."""
