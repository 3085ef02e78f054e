"""What the tokens of a rollout batch have earned: advantages of responses, of their turns and parts, or of tokens."""
