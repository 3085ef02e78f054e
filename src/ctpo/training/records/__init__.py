"""What a run writes while it trains, whether `ctpo train` or a Python script started it."""
