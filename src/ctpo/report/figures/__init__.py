"""The figures of a report as data: what is drawn, and the words beside it."""
