"""How the tokens of a batch lie in memory: padded rows, packed batches, shards of sequences."""
