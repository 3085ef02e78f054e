"""What a run leaves on disk: its files are written here and read here, and scored once they are complete."""
