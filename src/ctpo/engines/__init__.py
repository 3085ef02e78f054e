"""The same recipe on engines of other people: which one runs it, and how it is translated."""
