"""How the tokens of a batch lie in memory: padded rows, a packed stream, shards of sequences."""
