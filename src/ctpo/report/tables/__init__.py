"""The tables of a report, as rows and words."""
