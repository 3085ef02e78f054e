"""The processes that compare answers, killed, interrupted, forked and flooded."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctpo.errors import UserError
from ctpo.tasks.math import MathCheck, workers
from ctpo.tasks.math.verifier import Verifier

COSINES = [rf"\cos({2**k}x)" for k in range(8)]


def hopeless(i: int) -> tuple[str, str]:
    """Equal expressions, for which sympy needs more than a minute."""
    return f"{i + 2}{''.join(COSINES)}", rf"\frac{{{i + 2}\sin(256x)}}{{256\sin(x)}}"


@pytest.fixture(scope="module")
def shared() -> Iterator[Verifier]:
    verifier = Verifier(workers=2)
    yield verifier
    verifier.close()


@pytest.fixture
def verifier(shared: Verifier) -> Verifier:
    """A verifier that runs and remembers nothing."""
    shared._known.clear()
    assert shared.compare_all([("x+1", "1+x"), ("x+1", "x+2")]) == ["right", "wrong"]
    return shared


def process(verifier: Verifier) -> subprocess.Popen[bytes]:
    assert verifier._process is not None
    return verifier._process


def child_of(pid: int) -> int:
    """The child that answers. It may just be being forked anew, which takes long where memory is short."""
    deadline = time.monotonic() + 60
    while not (children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        status = Path(f"/proc/{pid}/status").read_text()
        assert time.monotonic() < deadline, f"the worker {pid} has no child: {status}"
        time.sleep(0.01)
    return int(children[0])


def living(verifier: Verifier) -> int:
    """The first worker's process id. One that the system has ended since its last answer is replaced first."""
    for i in range(5):
        if process(verifier).poll() is None:
            break
        assert verifier.compare(f"{i}y+1", f"1+{i}y") == "right"
    return process(verifier).pid


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def check_own_verdicts(verifier: Verifier, first: int) -> None:
    """Compare new pairs, of which every second is equal."""
    for i in range(first, first + 4):
        assert verifier.compare(f"x+{i}", f"{i + i % 2}+x") == ("wrong" if i % 2 else "right")


@pytest.mark.parametrize("who", ["worker", "child"])
def test_a_process_killed_between_two_questions_costs_nothing(verifier: Verifier, who: str) -> None:
    pid = living(verifier)
    os.kill(pid if who == "worker" else child_of(pid), signal.SIGKILL)
    check_own_verdicts(verifier, 10)


@pytest.mark.parametrize("who", ["worker", "child"])
def test_a_process_killed_at_a_question_is_asked_again(
    verifier: Verifier, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = living(verifier)
    deaths = []
    lost = workers.Worker.lost
    monkeypatch.setattr(workers.Worker, "lost", lambda self: deaths.append(self.question) or lost(self))
    victim = pid if who == "worker" else child_of(pid)
    verifier.limit_s = 1.0
    threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
    started = time.monotonic()
    assert verifier.compare(*hopeless(0)) == "timeout"  # and not "unparsable"
    assert time.monotonic() - started > 1.2  # 0.3 s, and 1 s again
    assert [question.pair for question in deaths if question] == [hopeless(0)]
    verifier.limit_s = 3.0
    check_own_verdicts(verifier, 20)


def test_the_time_limit_of_a_question_that_was_given_up_ends_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may pass between the end of one budget and the next question, and be heard only then."""
    monkeypatch.setattr(workers, "_RETRIES", 1)  # the signal that ends it may come late, and is one death
    held: list[workers.Worker] = []
    workers.start(held, 1)
    (worker,) = held
    try:
        worker.ask(workers.Question(hopeless(0)), 0.2)
        assert select.select([worker.answers], [], [], 20)[0]  # it has passed
        worker.give_up()
        question = workers.Question(("x+1", "1+x"))
        workers.ask_all(held, [question], 3.0, 20.0)
        assert question.verdict == "right"
        # Two such deaths that are heard at once lose it as little.
        worker.ask(question, 3.0)
        heard, written = os.pipe()
        os.write(written, b"died 27 -1\ndied 9 -1\n")
        os.close(written)
        monkeypatch.setattr(worker, "answers", heard)
        assert worker.hear() is question
        os.close(heard)
    finally:
        for each in held:
            each.end()


def test_a_question_that_was_given_up_unread_is_not_answered() -> None:
    lines = [[0, 3.0, *hopeless(0)], [1, 3.0, "x+1", "1+x"]]
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, workers._WORKER], stdin=pipe, stdout=pipe) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        worker.stdin.flush()
        assert [worker.stdout.readline() for _ in range(2)] == [b"ready\n", b"1 right\n"]


def test_an_exception_of_the_caller_shifts_no_verdict(verifier: Verifier) -> None:
    class Ring(Exception):
        pass

    def ring(*_: object) -> None:
        raise Ring

    before = signal.signal(signal.SIGALRM, ring)
    rings = 0
    try:
        for i in range(5):
            signal.setitimer(signal.ITIMER_REAL, 0.001 * 4**i)
            try:
                verifier.compare(*hopeless(i))
            except Ring:
                rings += 1
            check_own_verdicts(verifier, 100 + 4 * i)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rings == 5


def test_nothing_uncertain_is_remembered(verifier: Verifier) -> None:
    pair = "x+51", "51+x"
    assert verifier.compare_all([pair], budget_s=0.0) == ["timeout"]
    assert verifier.compare(*pair) == "right"


def test_a_good_answer_among_hopeless_ones_is_judged(verifier: Verifier) -> None:
    pairs = [hopeless(i) for i in range(60)]
    pairs[30:30] = [("x+41", "41+x"), ("x+41", "42+x")]
    started = time.monotonic()
    verdicts = verifier.compare_all(pairs, budget_s=5.0)
    assert time.monotonic() - started < 7
    assert verdicts == ["timeout"] * 30 + ["right", "wrong"] + ["timeout"] * 30
    check_own_verdicts(verifier, 200)


def test_a_batch_counts_every_completion(verifier: Verifier) -> None:
    check = MathCheck(verifier)
    verifier.limit_s = 0.3
    reference, other = hopeless(0)
    completions = [
        "no",
        rf"\boxed{{{''.join(reversed(COSINES))}\cdot 2}}",
        r"\boxed{y}",
        rf"\boxed{{{other}}}",
        rf"\boxed{{{reference}}}",
    ]
    verdicts = check.verdicts(completions, [reference] * 5)
    verifier.limit_s = 3.0
    assert verdicts == ["no answer", "right", "wrong", "timeout", "right"]
    assert check.account == {"right": 2, "no answer": 1, "wrong": 1, "timeout": 1}


def test_after_a_fork_the_parent_goes_on_and_the_child_has_its_own(verifier: Verifier) -> None:
    """The child is then killed while its worker computes, and leaves nothing that does."""
    pid = living(verifier)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            verifier._most = 1
            check_own_verdicts(verifier, 300)
            os.write(writing, b"%d\n" % process(verifier).pid)
            verifier.limit_s = 60
            verifier.compare_all([hopeless(0)], budget_s=60)
        finally:
            os._exit(1)
    os.close(writing)
    check_own_verdicts(verifier, 304)
    with os.fdopen(reading) as line:
        theirs = int(line.readline())  # nothing comes if the child's verdicts are wrong
    check_own_verdicts(verifier, 308)
    assert theirs != process(verifier).pid == pid
    assert alive(pid)
    computing = child_of(theirs)
    time.sleep(0.3)  # now it computes
    assert alive(theirs)
    assert alive(computing)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while (alive(theirs) or alive(computing)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(theirs)
    assert not alive(computing)
    check_own_verdicts(verifier, 312)


def test_a_worker_that_does_not_start_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(workers, "_WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(workers, "_STARTS", 2)
    with pytest.raises(UserError, match="does not start; run") as caught:
        Verifier(workers=1).compare("x+1", "1+x")
    assert "\n" not in str(caught.value)
