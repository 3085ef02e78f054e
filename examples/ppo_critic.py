"""PPO with a critic: every token gets its own advantage, from values that a second model learns.

    python examples/ppo_critic.py                        # about a minute on a laptop's CPU
    python examples/ppo_critic.py --rollout-batches 8    # longer

The embedded model learns chain sums with a Python tool. For each rollout batch the program prints the reward and how
much of the returns the critic explains: 0 if its values are no better than the mean return, and 1 if they are exact.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.tasks.arithmetic import model_path

UPDATES = 16
"""Each rollout batch is taken in so many minibatches."""


class Printer(TrainerCallback):
    """Prints one line per rollout batch."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Print the figures of a rollout batch, which are logged with its last update."""
        if "objective/critic_explained_variance" in logs:
            print(
                f"batch {state.global_step // UPDATES:2}  reward {logs['reward']:.3f}  "
                f"explained variance {logs['objective/critic_explained_variance']:+.2f}  "
                f"value loss {logs['objective/critic_value_loss']:.3f}",
                flush=True,
            )


def main() -> None:
    """Train for some rollout batches."""
    parser = argparse.ArgumentParser(description="PPO with a critic on the embedded task.")
    parser.add_argument("--rollout-batches", type=int, default=4, help="default %(default)s")
    parser.add_argument("--responses", type=int, default=256, help="per rollout batch (default %(default)s)")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as output:
        config = CTPOConfig(
            output,
            objective="ppo",
            advantages="gae",
            critic={"epochs": 2, "replay": 1},
            anchor="rollout",  # the log-probs of our engine, so nothing is recomputed
            generation_batch_size=words.responses,
            per_device_train_batch_size=words.responses // UPDATES,
            num_generations=8,
            max_steps=words.rollout_batches * UPDATES,
            max_completion_length=96,
            learning_rate=3e-4,
            logging_steps=UPDATES,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = CTPOTrainer(str(model_path()), args=config, task="arithmetic", callbacks=[Printer()])
        trainer.remove_callback(PrinterCallback)  # it would print every figure
        trainer.train()


if __name__ == "__main__":
    main()
