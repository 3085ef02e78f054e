"""The tables and headline numbers of a report, as the words that are shown."""
