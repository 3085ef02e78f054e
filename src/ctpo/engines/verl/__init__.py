"""verl on Ray: a recipe becomes verl's configuration, and verl's own trainer runs it."""
