"""Training in an environment: rows of the dataset reach it, and its rewards per turn reach the loss."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ctpo.errors import UserError
from ctpo.objectives import turns_of
from ctpo.tasks import Problem, Task, reward_function
from ctpo.training.credit.turns import rewards_by_turn, spread, turn_numbers

ENDS = list(range(20, 110))
"""Many tokens end a turn, so that an untrained model plays several turns."""


class Lengths:
    """Rewards a turn by its length, at once; the third turn is the last. The problem's answer says what it is worth."""

    made: list[Problem]

    def reset(self, problem: Problem) -> str:
        self.turns, self.worth = 0, float(problem.answer)
        return f"{problem.prompt} ({problem.id})"

    def step(self, reply: str) -> tuple[str, float, bool]:
        self.turns += 1
        return f"<{self.turns}>", self.worth * min(len(reply), 5), self.turns == 3


def problems(split: str, count: int, seed: int) -> list[Problem]:
    return [Problem(prompt=f"q{i}", answer=str(1 + i % 2), id=f"id{i}") for i in range(count)]


TASK = Task(name="lengths", problems=problems, environment=Lengths, chat=True)


def trainer_of(folder: Path, task: Task = TASK, **settings: Any) -> Any:
    from datasets import Dataset
    from rollout.conftest import make_model, make_tokenizer
    from transformers import PrinterCallback

    from ctpo.training import CTPOConfig, CTPOTrainer
    from ctpo.training.sampling.rollout_func import make_rollout_func

    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    model.generation_config.eos_token_id = [*ENDS, tokenizer.eos_token_id]
    keys = {
        "generation_batch_size": 16,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 60,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "logging_steps": 4,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
        **settings,
    }
    resume = keys.pop("resume", None)
    trainer = CTPOTrainer(
        model=model,
        reward_funcs=reward_function(task),
        args=CTPOConfig(str(folder), **keys),
        train_dataset=Dataset.from_list([vars(problem) for problem in problems("train", 8, 0)]),
        processing_class=tokenizer,
        rollout_func=make_rollout_func(None, task=task),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two rollout batches of four groups, with two minibatches each, by an objective whose ratios begin with a turn."""
    folder = tmp_path_factory.mktemp("turns")
    return trainer_of(folder, advantages="turns", objective="ctpo-turn", save_strategy="steps", save_steps=3)


def whole(trainer: Any, name: str) -> torch.Tensor:
    return torch.cat([part[name] for part in trainer._buffered_inputs])


def turns_in(mask: list[int]) -> list[list[int]]:
    """The places of each turn's tokens, without the library's means."""
    found: list[list[int]] = []
    for place, own in enumerate(mask):
        if own:
            fresh = place == 0 or not mask[place - 1]
            found.append([]) if fresh else None
            found[-1].append(place)
    return found


def earned(trainer: Any) -> tuple[list[list[float]], list[str], list[list[int]]]:
    """The rewards of each response's turns, read from the transcript alone; its prompt, and the mask of its tokens."""
    tokenizer = trainer.processing_class
    mask = (whole(trainer, "completion_mask") * whole(trainer, "tool_mask")).tolist()
    ids = whole(trainer, "completion_ids").tolist()
    prompts = tokenizer.batch_decode(whole(trainer, "prompt_ids"), skip_special_tokens=True)
    rewards = []
    for row, prompt in enumerate(prompts):
        worth = 1 + int(prompt.split("id")[1][0]) % 2  # the row's answer, which reached the environment
        turns = [[ids[row][place] for place in turn] for turn in turns_in(mask[row])]
        said = [tokenizer.decode(turn, skip_special_tokens=True) for turn in turns]
        ended = [turn[-1] in (*ENDS, tokenizer.eos_token_id) for turn in turns]  # not cut by the length limit
        rewards.append([worth * min(len(text), 5) * whole for text, whole in zip(said, ended, strict=True)])
    return rewards, prompts, mask


def test_turn_rewards_become_advantages_of_tokens(trained: Any) -> None:
    import statistics

    rewards, prompts, mask = earned(trained)
    advantages = whole(trained, "advantages")
    returns = [[sum(each[k:]) for k in range(len(each))] for each in rewards]
    assert {len(each) for each in returns} >= {3}
    for row, own in enumerate(returns):
        group = [returns[i] for i in range(len(prompts)) if prompts[i] == prompts[row]]
        assert len(group) == 4
        expected = torch.zeros(len(mask[row]))
        for k, places in enumerate(turns_in(mask[row])):
            at_k = [other[min(k, len(other) - 1)] for other in group]
            value = (own[k] - statistics.mean(at_k)) / (statistics.stdev(at_k) + 1e-4)
            expected[places] = value
        torch.testing.assert_close(advantages[row], expected, atol=1e-4, rtol=1e-4)
    logged = list(trained._logs["rewards"]["lengths"])[-16:]
    assert sorted(logged) == sorted(each[0] for each in returns)


def test_each_turn_is_compared_with_the_same_turn_of_the_others(tmp_path: Path) -> None:
    import statistics

    trainer = trainer_of(tmp_path, advantages="each-turn", max_steps=1, max_completion_length=50)
    rewards, prompts, mask = earned(trainer)
    advantages = whole(trainer, "advantages")
    assert len({len(each) for each in rewards}) > 1  # some are cut by the length limit, and have fewer turns
    for row, own in enumerate(rewards):
        expected = torch.zeros(len(mask[row]))
        for k, places in enumerate(turns_in(mask[row])):
            at_k = [
                each[k]
                for each, prompt in zip(rewards, prompts, strict=True)
                if prompt == prompts[row] and len(each) > k
            ]
            if len(at_k) > 1:
                expected[places] = (own[k] - statistics.mean(at_k)) / (statistics.stdev(at_k) + 1e-4)
        torch.testing.assert_close(advantages[row], expected, atol=1e-4, rtol=1e-4)
    assert (advantages != 0).any()
    # Diagnostics deal out the rewards of each turn among the responses that have it.
    sizes = whole(trainer, "null_sizes")
    for row, prompt in enumerate(prompts):
        group = [other for other, theirs in enumerate(prompts) if theirs == prompt]
        for k, places in enumerate(turns_in(mask[row])):
            turns = [turns_in(mask[other]) for other in group]
            values = [
                float(advantages[other][each[k][0]])
                for other, each in zip(group, turns, strict=True)
                if len(each) > k
            ]
            known = [abs(value) for value in values if value]
            mean = statistics.mean(known) if known else 0.0
            torch.testing.assert_close(
                sizes[row][places], torch.full((len(places),), mean), atol=1e-5, rtol=1e-4
            )


def test_a_resumed_run_and_another_layout_end_alike(trained: Any, tmp_path: Path) -> None:
    folder = Path(trained.args.output_dir)
    same = {"advantages": "turns", "objective": "ctpo-turn"}
    resumed = trainer_of(tmp_path / "resumed", resume=str(folder / "checkpoint-3"), **same)
    padded = trainer_of(tmp_path / "padded", pack_rows=False, skip_zero_advantage=False, **same)
    for mine, again, other in zip(
        trained.model.parameters(), resumed.model.parameters(), padded.model.parameters(), strict=True
    ):
        assert torch.equal(mine, again)
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=1e-4)


def test_a_reward_at_the_end_alone_gives_the_usual_advantages(tmp_path: Path) -> None:
    class AtTheEnd(Lengths):
        def step(self, reply: str) -> tuple[str, float, bool]:
            text, reward, over = super().step(reply)
            return text, reward if over else 0.0, over

        def finish(self, reply: str) -> float:
            return 0.5 * len(reply)

    task = dataclasses.replace(TASK, environment=AtTheEnd)
    usual, turns = (
        trainer_of(tmp_path / name, task, advantages=name, max_steps=1, max_completion_length=50)
        for name in ("trl", "turns")
    )
    plain, by_turn = whole(usual, "advantages"), whole(turns, "advantages")
    own = (whole(turns, "completion_mask") * whole(turns, "tool_mask")).bool()
    assert (plain != 0).any()
    torch.testing.assert_close(by_turn, plain[:, None] * own, atol=1e-5, rtol=1e-5)


def test_a_response_whose_environment_hangs_is_not_scored(tmp_path: Path) -> None:
    class Hangs(Lengths):
        def step(self, reply: str) -> tuple[str, float, bool]:
            if self.worth == 2 and len(reply) < 4:
                time.sleep(3.0)
            return super().step(reply)

    task = dataclasses.replace(TASK, environment=Hangs, step_timeout_s=0.3)
    with pytest.warns(UserWarning, match=r"Hangs .* step of problem id\d takes more than step_timeout_s=0.3"):
        trainer = trainer_of(tmp_path, task, advantages="turns", max_steps=1)
    rewards = torch.tensor(list(trainer._logs["rewards"]["lengths"])[-16:])
    lost = rewards.isnan()
    assert lost.any()
    assert not lost.all()
    assert int((whole(trainer, "advantages") == 0).all(dim=1).sum()) >= int(lost.sum())


def test_turn_rewards_are_needed(tmp_path: Path) -> None:
    plain = Task(name="lengths", problems=problems, check=lambda completion, answer: True)
    with pytest.raises(UserError, match="advantages=turns: the responses have no rewards per turn"):
        trainer_of(tmp_path, plain, advantages="turns", max_steps=1)


def test_turns_of_tokens_are_those_of_their_rewards() -> None:
    """A tool call in the middle of a turn does not end it; a reward after the last token belongs to the last turn."""
    mask = torch.tensor([[1, 1, 0, 1, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]]).bool()
    pairs = [[(3, 1.0), (7, 0.5)], [], [(2, 4.0)]]
    rewards, turns = rewards_by_turn(pairs, mask)
    assert rewards.tolist() == [[1.0, 0.5], [0.0, 0.0], [4.0, 0.0]]
    assert turns.tolist() == [2, 1, 0]
    numbers = turn_numbers(pairs, mask.shape[1])
    tokens = spread(torch.tensor([[1.0, 2.0], [3.0, 9.0], [5.0, 6.0]]), numbers, mask)
    assert tokens.tolist() == [[1, 1, 0, 1, 0, 2, 2, 0], [3, 3, 3, 0, 0, 0, 0, 0], [0.0] * 8]
    assert turns_of(mask)[0].tolist() == [0, 0, 0, 1, 1, 2, 2, 2]  # what objectives call turns
