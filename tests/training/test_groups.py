"""Which groups a rollout batch trains on: dynamic sampling, oversampling, and a curriculum of the problems."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from trl.trainer.utils import RepeatSampler

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.errors import UserError
from ctpo.tasks import Problem, Task
from ctpo.training.config.recipe import Recipe
from ctpo.training.run.start import train_problems
from ctpo.training.sampling.data import check_difficulties, dataset_rows
from ctpo.training.sampling.groups import Group, _by_turn, choose
from ctpo.training.sampling.stream import Curriculum, ProblemStream, solve_rates

BATCH = {
    "generation_batch_size": 16,
    "per_device_train_batch_size": 4,
    "logging_steps": 4,
    "max_completion_length": 24,
}
"""Rollout batches of 4 prompts with 4 responses each, and 4 updates."""


class Own(CTPOTrainer):
    """Rewards by length and place. Where `flat` is true of a problem, all responses to it get the same reward."""

    flat: ClassVar[Callable[[int], bool]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seen: list[str] = []

        def length(id: list[str], completion_ids: list[list[int]], log_extra: Any, **_: Any) -> list[float]:
            self.seen += id[::4]
            log_extra("problem", id)
            return [
                0.5 if self.flat(int(name[-1], 16)) else i % 4 + len(ids) / 1000
                for i, (name, ids) in enumerate(zip(id, completion_ids, strict=True))
            ]

        super().__init__(*args, **{**kwargs, "reward_funcs": length})


class Varied(Own):
    flat = staticmethod(lambda problem: False)


class HalfFlat(Own):
    flat = staticmethod(lambda problem: problem % 2 == 0)


class AllFlat(Own):
    flat = staticmethod(lambda problem: True)


def trained_on(trainer: Any) -> list[str]:
    """The problems of the last rollout batch."""
    return list(trainer._logs["extra"]["problem"])[::4]


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def plain(fit: Callable[..., Any]) -> Any:
    return fit(Varied, CTPOConfig, **BATCH)


def test_with_nothing_to_replace_it_trains_as_before(fit: Callable[..., Any], plain: Any) -> None:
    """Bit for bit, over two rollout batches: the same prompts, responses and updates."""
    trainer = fit(
        Varied,
        CTPOConfig,
        dynamic_sampling_rounds=2,
        curriculum={"normal": 1.0, "hard_to": -1, "easy_from": 9},
        **BATCH,
    )
    assert trainer.seen == plain.seen
    assert same(weights(trainer), weights(plain))


def test_the_batch_is_filled_with_the_first_useful_groups(fit: Callable[..., Any]) -> None:
    trainer = fit(
        HalfFlat, CTPOConfig, dynamic_sampling_rounds=20, max_steps=4, **{**BATCH, "logging_steps": 1}
    )
    order = [trainer.train_dataset[i]["id"] for i in [*RepeatSampler(range(64), 1, 4, seed=3)]]
    assert trainer.seen == order[: len(trainer.seen)]
    useful = [name for name in trainer.seen if int(name[-1], 16) % 2]
    assert trained_on(trainer) == useful[:4]
    assert len(useful) == 4 < len(trainer.seen)
    record = trainer.state.log_history[0]
    extra = len(trainer.seen) - 4
    assert record["objective/groups/rounds"] > 1
    assert record["objective/groups/extra_responses"] == extra * 4
    assert record["objective/groups/without_spread"] == pytest.approx(extra / len(trainer.seen))
    assert record["frac_reward_zero_std"] == 0
    assert trainer.rollout_account.responses == len(trainer.seen) * 4
    assert all(part["advantages"].abs().min() > 0 for part in trainer._buffered_inputs)


def test_rounds_are_bounded(fit: Callable[..., Any]) -> None:
    trainer = fit(AllFlat, CTPOConfig, dynamic_sampling_rounds=2, max_steps=4, **BATCH)
    assert len(trainer.seen) == 12
    assert trained_on(trainer) == trainer.seen[:4]
    record = trainer.state.log_history[0]
    assert record["objective/groups/rounds"] == 3
    assert record["objective/groups/without_spread"] == record["frac_reward_zero_std"] == 1


def test_oversampling_keeps_the_largest_spread(fit: Callable[..., Any]) -> None:
    trainer = fit(HalfFlat, CTPOConfig, oversampling=2.5, max_steps=4, **BATCH)
    assert len(trainer.seen) == 10
    kept = trained_on(trainer)
    assert kept == [name for name in trainer.seen if name in kept]  # in the order of the data
    assert sum(int(name[-1], 16) % 2 for name in kept) == min(
        4, sum(int(name[-1], 16) % 2 for name in trainer.seen)
    )


def test_a_resumed_run_draws_the_same_problems(fit: Callable[..., Any], tmp_path: Path) -> None:
    """It stops within the first rollout batch and goes on in another trainer."""
    settings = {
        "dynamic_sampling_rounds": 3,
        "oversampling": 1.3,
        "curriculum": {"easy": 0.3, "normal": 0.4, "hard": 0.3, "easy_from": 1.51},
        **BATCH,
    }
    whole = fit(HalfFlat, CTPOConfig, save_strategy="steps", save_steps=3, **settings)
    assert len(set(whole.groups._stream._buckets())) > 1
    resumed = fit(HalfFlat, CTPOConfig, resume=f"{whole.args.output_dir}/checkpoint-3", **settings)
    assert resumed.seen == whole.seen[-len(resumed.seen) :] != []
    assert same(weights(resumed), weights(whole))
    states = resumed.groups.state_dict(), whole.groups.state_dict()
    torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True)


def test_equal_sums_of_different_turns_have_a_spread_where_turns_have_advantages() -> None:
    def group(turns: list[list[tuple[int, float]]] | None, values: list[float]) -> Group:
        parts = None if turns is None else _by_turn(turns, torch.tensor(values))
        return Group(row=0, responses=[], rewards=torch.zeros(2, 1), values=torch.tensor(values), turns=parts)

    swapped = [[(3, 1.0), (9, 0.0)], [(2, 0.0), (5, 1.0)]]
    assert group(None, [1.0, 1.0]).spread == 0
    assert group(swapped, [1.0, 1.0]).spread == 0.5
    assert group([[(3, 1.0)], [(2, 1.0), (5, 0.0)]], [1.0, 1.0]).spread == 0
    assert group([[(3, 0.0)], [(2, 0.0), (5, 0.0)]], [1.0, 1.0]).spread == 0.5  # the rest is the last turn's
    assert group([[], []], [1.0, 1.0]).spread == 0
    assert group(swapped, [1.0, math.nan]).spread == 0  # one response alone
    assert group(swapped, [3.0, 1.0]).spread == 1.0


@pytest.mark.parametrize(
    ("spreads", "kept"),
    [
        ([1.0, 0.0, 1.0, 1.0], [0, 2]),  # of equal ones the earlier
        ([1.0, 0.0, 1.0, 2.0], [0, 3]),  # the largest, in the order of the data
        ([0.0, 0.0, 0.0, 2.0], [0, 3]),  # filled with the earliest
    ],
)
def test_the_rule(spreads: list[float], kept: list[int]) -> None:
    assert choose(spreads, 2) == kept


def test_the_stream_is_the_order_of_trl_over_epochs() -> None:
    sampler = RepeatSampler(range(8), mini_repeat_count=1, batch_size=4, seed=5)
    expected = [*sampler, *sampler, *sampler]
    stream, drawn = ProblemStream(8, seed=5), []
    for count in (4, 4, 4, 4, 4, 4):
        stream.begin_batch()
        drawn += stream.draw(count)
    assert drawn == expected
    assert ProblemStream(8, seed=5, shuffle=False).draw(8) == [*range(8)]
    assert Counter(ProblemStream(3, seed=0).draw(7)).most_common()[-1][1] == 2  # more than there are


def test_buckets_give_their_shares() -> None:
    """200 draws of 10: to within two of each bucket's share, and each bucket's problems equally often."""
    curriculum = Curriculum(shares=(0.13, 0.62, 0.25))
    rates = [1.0] * 20 + [0.5] * 30 + [0.0] * 50
    stream = ProblemStream(100, seed=1, curriculum=curriculum, difficulty=rates)
    counts: Counter[int] = Counter()
    for _ in range(200):
        stream.begin_batch()
        rows = stream.draw(10)
        assert len(set(rows)) == 10
        counts.update(rows)
    for start, end, share in ((0, 20, 0.13), (20, 50, 0.62), (50, 100, 0.25)):
        bucket = [counts[row] for row in range(start, end)]
        assert sum(bucket) == pytest.approx(2000 * share, abs=2)
        assert max(bucket) - min(bucket) <= 1


def test_solve_rates_move_problems_between_buckets() -> None:
    curriculum = Curriculum(shares=(0.0, 1.0, 0.0))
    stream = ProblemStream(6, seed=0, curriculum=curriculum, problems=["a", "a", "b", "c", "d", "e"])
    stream.observe([0, 2, 3], [1.0, 0.0, float("nan")])
    assert stream.buckets_of(range(6)) == [
        0,
        0,
        2,
        1,
        1,
        1,
    ]  # both rows of "a"; nothing is known of the others
    stream.begin_batch()
    assert set(stream.draw(3)) == {3, 4, 5}
    assert set(stream.draw(3)) == {0, 1, 2}  # no problem of a bucket with a share is left
    stream.observe([1], [0.5])
    assert stream.buckets_of([0]) == [1]  # 0.75
    assert stream.shares() == {"easy": 0.0, "normal": pytest.approx(5 / 6), "hard": pytest.approx(1 / 6)}
    with pytest.raises(
        UserError, match="training data of 6 rows and 5 problems, and this is 6 and 6; resume"
    ):
        ProblemStream(6, seed=0).load_state_dict(stream.state_dict())


def test_a_column_of_difficulties() -> None:
    curriculum = Curriculum(shares=(0, 1, 0), easy_from=0.8, hard_to=0.4)
    column = ["easy", "Hard", "medium", None, 0.25, 1]
    np.testing.assert_allclose(solve_rates(column, curriculum), [1.0, 0.0, 0.6, np.nan, 0.75, 0.0])
    with pytest.raises(
        ValueError, match=r"difficulty=7 in the training data is none; use easy, normal, hard"
    ):
        solve_rates([7], curriculum)


def test_problems_with_difficulties_are_training_data(tmp_path: Path) -> None:
    def problems(*difficulties: Any) -> list[Problem]:
        return [Problem(prompt="1", answer="1", id=f"p{i}", difficulty=d) for i, d in enumerate(difficulties)]

    assert [row["difficulty"] for row in dataset_rows(problems(0.5, None, "easy"))] == ["0.5", None, "easy"]
    assert all("difficulty" not in row for row in dataset_rows(problems(None, None)))
    config = CTPOConfig(output_dir=str(tmp_path), use_cpu=True, curriculum={"normal": 1})
    check_difficulties(problems("0.5", None, "hard"), config, "level")
    with pytest.raises(UserError, match=r"difficulty=5 in the training data \(p1\) is none"):
        check_difficulties(problems(0.5, 5), config, None)
    with pytest.raises(UserError, match=r"columns\.difficulty=level: no training problem has a value there"):
        check_difficulties(problems(None, None), config, "level")


def test_a_task_that_reads_rows_takes_the_column_of_difficulties(tmp_path: Path) -> None:
    class Rows:
        def __init__(self, column: str) -> None:
            self.column = column

        def __call__(self, split: str, count: int, seed: int) -> list[Problem]:
            row = {"rate": 0.25, "level": "hard"}
            return [Problem(prompt="1", answer="1", id=f"{i}", difficulty=row[self.column]) for i in range(8)]

        def rated_by(self, column: str) -> Rows:
            return Rows(column)

    task = Task(name="rows", problems=Rows("rate"), check=lambda completion, answer: True)
    config = CTPOConfig(
        str(tmp_path), use_cpu=True, curriculum={"hard": 1}, generation_batch_size=8, num_generations=4
    )
    (named, plain), refused = (
        (
            train_problems(Recipe(columns=columns), task, config)[0]
            for columns in ({"difficulty": "level"}, None)
        ),
        Recipe(columns={"difficulty": "level", "prompt": "text"}),
    )
    assert (named.difficulty, plain.difficulty) == ("hard", 0.25)
    with pytest.raises(UserError, match="task 'rows' makes its problems itself"):
        train_problems(refused, task, config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dynamic_sampling_rounds": -1}, "dynamic_sampling_rounds=-1 is no number of rounds"),
        ({"dynamic_sampling_rounds": 1.5}, "dynamic_sampling_rounds=1.5 is no number of rounds"),
        ({"oversampling": 0.5}, r"oversampling=0.5 is out of range; use 1"),
        ({"oversampling": float("nan")}, "oversampling=nan is out of range"),
        ({"group_metric": "length"}, "group_metric='length' has no effect without"),
        ({"curriculum": {}}, "curriculum has no share above 0"),
        ({"curriculum": {"normal": -1}}, "curriculum.normal=-1 is out of range; use a share"),
        ({"curriculum": {"medium": 1}}, "curriculum.medium is unknown; known: easy, normal, hard"),
        ({"curriculum": {"normal": 1, "easy_from": 0.1}}, "hard_to=0.2 is not below easy_from=0.1"),
        ({"curriculum": '{"normal": "much"}'}, "curriculum.normal='much' is out of range"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        CTPOConfig(str(tmp_path), use_cpu=True, **settings)


def test_a_metric_that_no_reward_function_has(fit: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="group_metric='accuracy' is no reward function; known: length"):
        fit(Varied, CTPOConfig, group_metric="accuracy", oversampling=2, **BATCH)
