"""Environments of other libraries, as environments of `ctpo.tasks`. Each adapter imports its library lazily."""
