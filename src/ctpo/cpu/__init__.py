"""What makes a CPU fast. Delete this folder and everything still trains."""
