"""A critic: values of tokens, and the advantages that follow from them.

The value V(s_t) of the state before a token is the return that is expected from there on. It is linear in `surprise`,
which says how likely the policy held the tokens so far. With a shared trunk it is linear in the policy's hidden state
too. `least_squares` solves for this part. A copied trunk, or a token classifier of transformers, adds what it learns by
gradient from the rest (`model`, `loss`). Rows go through a trunk in the layout of the policy (`training/scoring`).
`estimates` turns rewards and values into advantages and targets, and `figures` says how good the values are.

`learner` fits the critic once per rollout batch, before the policy learns from that batch. The values of a minibatch
give its advantages and targets, and then the critic learns from them. So a value never depends on the response that it
judges, nor on the others to the same prompt if these are in the same minibatch. Sums and gradients are added up over
processes, so two processes fit what one does. All that was learned is in every checkpoint (`critic.pt`).
"""
