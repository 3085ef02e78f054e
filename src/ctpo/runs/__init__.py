"""What finished runs scored, from their files, and statistics over seeds."""
