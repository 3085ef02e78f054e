"""Recipes and settings: read, typed and checked before torch and TRL are imported."""
