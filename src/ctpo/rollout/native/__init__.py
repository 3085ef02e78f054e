"""Tool calls in the forms of chat templates: learned from what a template writes, and read from what a model writes."""
