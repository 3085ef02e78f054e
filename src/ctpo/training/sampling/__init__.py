"""How TRL gets its rollouts and rewards from ours."""
