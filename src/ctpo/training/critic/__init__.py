"""A critic: a value model beside the policy, and the advantages that it gives to tokens.

The value V(s_t) of the state before a token is the return that is expected from there on. `model` reads it with a
linear head from the hidden state that predicts the token. The trunk below the head is a copy of the policy's trunk,
whole or its first layers, with or without LoRA, or a token classifier of transformers. It can also be the policy's own
trunk, which the critic then does not change. Rows go through the trunk in the layout of the policy
(`training/scoring`): packed, each prompt once, and within the same limits of tokens. `estimates` turns rewards and
values into advantages and targets, `loss` is what the critic is fitted by, and `figures` says how good the values are.

`learner` fits the critic once per rollout batch, before the policy learns from that batch. Its first pass does two
things with one forward pass: the values of a minibatch give its advantages and targets, and then the critic learns from
them. So a value never depends on the response that it judges, nor on the others to the same prompt if these are in the
same minibatch, and no pass is spent on values alone. Further passes, also over earlier rollout batches, are optional.
The critic has its own optimizer and guard. Gradients are added up over processes, so two processes fit what one does.
Its weights and moments are in every checkpoint (`critic.pt`). Where weights are sharded (FSDP, DeepSpeed) there is no
critic.
"""
