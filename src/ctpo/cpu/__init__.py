"""What makes a CPU fast. `ctpo.fast_cpu` is the only way in, and without this folder everything still trains."""
