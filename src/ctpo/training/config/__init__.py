"""Recipes and settings, checked and typed before anything heavy is loaded."""
