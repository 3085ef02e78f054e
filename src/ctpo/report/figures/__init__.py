"""The figures of a report, as data."""
