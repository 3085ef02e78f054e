"""The compiled C pass and its autograd function."""
