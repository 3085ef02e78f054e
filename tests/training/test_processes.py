"""Two processes make the same run as one: the same responses, minibatches, parameters and records.

A run of two that was interrupted, lost a process, and was resumed ends with the bits of an undisturbed one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from launcher import finish, launch, launch_function, launch_many
from safetensors.torch import load_file
from test_environments import trainer_of
from test_resume import result_of

from ctpo.cli.main import main
from ctpo.errors import UserError
from ctpo.training.config.checks import TURN_ADVANTAGES
from ctpo.training.config.config import CTPOConfig
from ctpo.training.config.launch import DDP_TIMEOUT, check_launch
from ctpo.training.processes import any_of, peers_in_one_line, share, unused_sharding
from ctpo.training.step.minibatches import dealt_order

SMALL = (
    "rollout_batches=3 generation_batch_size=32 num_generations=4 train_problems=32 eval_problems=9 eval_every=3 "
    "transcripts=9 max_completion_length=80 save_steps=2 learning_rate=1e-3 "
    # Both look at all processes: lengths are gathered, and so are the shares of rejected tokens (which are 0).
    "advantages=opo rollout_correction=trm-avg "
    # All processes choose the same groups, and the second draws on after it was interrupted.
    "dynamic_sampling_rounds=2 oversampling=1.25 curriculum.normal=0.7 curriculum.hard=0.3"
).split()
TOLERANCE = 2e-5
"""The largest difference of a weight after 6 updates of up to 1e-3 each. Gradients are added in another order, and Adam
divides small ones by their own size. Other responses or other minibatches would move weights by 1e-3."""


def records_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processes") / "one"
    words = ["train", *SMALL, "per_device_train_batch_size=16", f"output_dir={path}"]
    log = path.with_suffix(".log")
    assert finish(launch(words, log)) == 0, log.read_text()
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in two processes."""
    path = tmp_path_factory.mktemp("processes") / "undisturbed"
    log = path.with_suffix(".log")
    both = launch_many(2, ["train", *SMALL, "per_device_train_batch_size=8", f"output_dir={path}"], log)
    assert [finish(process) for process in both] == [0, 0], log.with_name(f"{log.name}-1").read_text()
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in two processes, interrupted by a signal to the second one, resumed, robbed of the second one, and
    resumed again."""
    path = tmp_path_factory.mktemp("processes") / "two"
    log = path.with_suffix(".log")
    both = launch_many(2, ["train", *SMALL, "per_device_train_batch_size=8", f"output_dir={path}"], log)
    while not (path / "checkpoint-2").exists():
        assert both[0].is_alive(), log.with_name("two.log-0").read_text()
        time.sleep(0.01)
    assert both[1].pid is not None
    os.kill(both[1].pid, signal.SIGINT)  # one of them only
    assert [finish(process) for process in both] == [130, 130], log.with_name("two.log-1").read_text()
    assert len(records_of(path)) < 4
    both = launch_many(2, ["train", "--resume", str(path)], log)
    while "continuing from" not in log.with_name("two.log-0").read_text():
        assert both[0].is_alive(), log.with_name("two.log-0").read_text()
        time.sleep(0.01)
    both[1].kill()
    assert finish(both[0]) == 2, log.with_name("two.log-0").read_text()
    both = launch_many(2, ["train", "--resume", str(path)], log)
    assert [finish(process) for process in both] == [0, 0], log.with_name("two.log-1").read_text()
    return path


def test_the_same_parameters(one: Path, two: Path) -> None:
    expected = load_file(one / "model" / "model.safetensors")
    for name, value in load_file(two / "model" / "model.safetensors").items():
        torch.testing.assert_close(value, expected[name], atol=TOLERANCE, rtol=0)


def test_the_same_records(one: Path, two: Path) -> None:
    """Counts of tools and tokens, rewards and held-out accuracy, over all processes."""
    exact = "batch step tool_calls tool_calls_per_response tool_failures response_tokens truncated reward reward_std "
    exact += (
        "tokens sequences heldout_pass@1 heldout_tokens heldout_tool_calls heldout_problems skipped_updates "
    )
    exact += "epoch learning_rate sampling_rounds extra_responses groups_without_spread reward_sampled "
    exact += "curriculum_hard problems_easy"
    for got, expected in zip(records_of(two), records_of(one), strict=True):
        assert got.keys() == expected.keys()
        for name in set(exact.split()) & expected.keys():
            assert got[name] == pytest.approx(expected[name], rel=1e-6), name
        for name in {"loss", "grad_norm", "log_ratio_mean"} & expected.keys():
            assert got[name] == pytest.approx(expected[name], rel=1e-2, abs=1e-5), name


def test_the_same_profiles(one: Path, two: Path) -> None:
    """Profiles are sums over all processes: compared on the first batch, before rounding has had much effect."""
    mine, whole = (
        [json.loads(line) for line in (run / "profile.jsonl").read_text().splitlines()] for run in (two, one)
    )
    assert [line["batch"] for line in mine] == [line["batch"] for line in whole] == [1, 2, 3]
    assert sum(whole[0]["count"]) > 1000
    assert mine[0].keys() == whole[0].keys()
    for name in ("edge", "count", "position_mean"):
        assert mine[0][name] == whole[0][name]
    for name in ("log_ratio_mean", "log_ratio_std", "gradient_removed"):
        assert mine[0][name] == pytest.approx(whole[0][name], abs=1e-5), name
    for name in ("high", "low", "dual"):
        assert mine[0][name] == pytest.approx(whole[0][name], abs=1), name


def test_the_same_heldout_responses(one: Path, two: Path) -> None:
    """With nine problems, the processes' shares differ in size."""
    for batch in (0, 3):
        name = f"transcripts/batch-{batch:04d}.jsonl"
        assert (one / name).read_text() == (two / name).read_text()


def test_resumed_processes_end_with_the_bits_of_undisturbed_ones(undisturbed: Path, two: Path) -> None:
    assert result_of(two) == result_of(undisturbed)


def test_only_the_first_process_speaks(two: Path) -> None:
    assert "held-out" in two.with_name("two.log-0").read_text()
    assert two.with_name("two.log-1").read_text() == ""


def test_a_lost_process_is_one_line(two: Path) -> None:
    log = two.with_name("two.log-0").read_text()
    assert "Traceback" not in log
    line = (
        f"ctpo: another process of this run has ended, and its own output says why; go on with --resume {two}"
    )
    assert log.count(line) == 1


def left_alone(folder: Path, how: str, rank: int) -> None:
    """What each of two processes does: it joins the other and talks to it, until this rank stops, dies or is killed."""
    accelerator, log = None, folder / os.environ["RANK"]
    try:
        config = CTPOConfig(str(folder), use_cpu=True, ddp_timeout=2, report_to="none")
        accelerator = Accelerator(cpu=True)
        with peers_in_one_line(config):
            any_of(False, accelerator)
            if os.environ["RANK"] == str(rank):
                os.kill(os.getpid(), getattr(signal, how))
            any_of(False, accelerator)
    except UserError as error:
        log.write_text(str(error))
    os._exit(0)  # the group of processes cannot be left in order


@pytest.mark.parametrize(
    ("how", "line", "rank"),
    [("SIGSTOP", r"has not answered for 2 seconds \(ddp_timeout=2\)", 1), ("SIGKILL", "has ended", 0)],
)
def test_who_is_left_alone_says_so(how: str, line: str, rank: int, tmp_path: Path) -> None:
    both = launch_function(2, left_alone, (tmp_path, how, rank), tmp_path / "log")
    assert finish(both[1 - rank], 60) == 0
    both[rank].kill()
    printed = (tmp_path / str(1 - rank)).read_text()
    assert re.search(f"another process .*{line}.*; start all processes again", printed), printed


def test_a_process_that_never_comes(tmp_path: Path) -> None:
    (here, absent) = launch_function(2, left_alone, (tmp_path, "SIGSTOP", 1), tmp_path / "log")
    absent.kill()
    assert finish(here, 60) == 0
    assert "ddp_timeout=2" in (tmp_path / "0").read_text()


def test_processes_wait_for_minutes() -> None:
    assert CTPOConfig("unused", report_to="none", use_cpu=True).ddp_timeout == DDP_TIMEOUT == 600


def test_sharding_that_is_not_in_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher's variables are those that accelerate 1.15 sets for `--use_fsdp` and for DeepSpeed."""
    accelerator = Accelerator(cpu=True)
    assert unused_sharding(accelerator) is None
    for given in ({"fsdp": True}, {"deepspeed": {"zero_optimization": {}}}):
        (name,) = given
        sentence = str(unused_sharding(accelerator, **given))
        assert sentence.lower().startswith(f"{name} was asked for and is not in use")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "FSDP was asked for" in str(unused_sharding(accelerator))
    in_use = SimpleNamespace(distributed_type=DistributedType.FSDP)
    assert unused_sharding(in_use, fsdp=True) is None


def test_another_number_of_processes_is_refused(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(two / "checkpoint-6"), "rollout_batches=4"]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "saved by 2 processes and this is 1; resume with `torchrun --nproc_per_node 2`" in printed


def in_an_environment(
    folder: Path, name: str, **sizes: int
) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """The parameters and the records of a small training whose rewards are of turns."""
    settings = {"advantages": name, "objective": "ctpo-turn", "max_completion_length": 50, "max_steps": 2}
    trainer = trainer_of(folder / name, **settings, **sizes)
    return [*trainer.model.parameters()], records_of(folder / name)


def one_of_two(folder: Path) -> None:
    """What each of two processes does: its half of the responses, in micro-batches of a quarter of the size."""
    for name in TURN_ADVANTAGES:
        parameters, _ = in_an_environment(
            folder / "two", name, per_device_train_batch_size=2, gradient_accumulation_steps=2
        )
        torch.save(parameters, folder / f"{name}-{os.environ['RANK']}.pt")


def test_advantages_of_turns_are_those_of_one_process(tmp_path: Path) -> None:
    """Two updates on a rollout batch of responses with different numbers of turns."""
    log = tmp_path / "log"
    both = launch_function(2, one_of_two, (tmp_path,), log)
    expected = {
        name: in_an_environment(tmp_path / "one", name, per_device_train_batch_size=8)
        for name in TURN_ADVANTAGES
    }
    assert [finish(process) for process in both] == [0, 0], log.with_name("log-1").read_text()
    for name, (parameters, records) in expected.items():
        for rank in range(2):
            for mine, value in zip(torch.load(tmp_path / f"{name}-{rank}.pt"), parameters, strict=True):
                torch.testing.assert_close(mine, value, atol=TOLERANCE, rtol=0)
        for got, wanted in zip(records_of(tmp_path / "two" / name), records, strict=True):
            for key in {"reward", "response_tokens", "tokens", "loss", "grad_norm"} & wanted.keys():
                assert got[key] == pytest.approx(wanted[key], rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize(("per_process", "group"), [(4, 4), (8, 4), (2, 2)])
def test_mini_batches_hold_the_same_rows_however_many_processes(per_process: int, group: int) -> None:
    rows, updates = 32, 4
    whole = dealt_order(rows, updates, group).reshape(updates, -1)
    for processes in (2, 4):
        if rows // processes // updates % group:
            continue  # the minibatch of a process would hold a part of a group
        mine = dealt_order(rows // processes, updates, group).reshape(updates, -1)
        parts = [mine + process * rows // processes for process in range(processes)]
        together = torch.cat(parts, dim=1).sort(dim=1).values
        assert torch.equal(together, whole.sort(dim=1).values)


def test_shares_cover_everything_once() -> None:
    for count in (0, 1, 9, 1024):
        for processes in (1, 2, 7):
            assert [i for index in range(processes) for i in share(count, processes, index)] == [
                *range(count)
            ]


def test_accelerate_launch_that_starts_one_process_is_refused() -> None:
    """With the environment variables that accelerate 1.15 sets for `--cpu --num_processes 2`."""
    left = {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no"}
    check_launch(left)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    with pytest.raises(
        UserError, match=r"asked for several processes and started one.*torchrun --nproc_per_node"
    ):
        check_launch({**left, **meeting})
    check_launch({**left, **meeting, "WORLD_SIZE": "2", "RANK": "0"})
    check_launch({**left, **meeting, "PMI_SIZE": "2"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="accelerate would join them over the GPU")
def test_processes_that_would_train_apart_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = tmp_path / "run"
    assert main(["train", *SMALL, "per_device_train_batch_size=8", "use_cpu=false", f"output_dir={run}"]) == 2
    assert "2 processes were started and each would train alone" in capsys.readouterr().err
    assert not run.exists()
