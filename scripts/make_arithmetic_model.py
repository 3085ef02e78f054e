"""Makes the embedded arithmetic model again: `python scripts/make_arithmetic_model.py --output DIR`."""

from __future__ import annotations

from arithmetic_model.warmup import main

if __name__ == "__main__":
    main()
