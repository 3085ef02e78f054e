"""Malformed and hostile files: each ends with one line and exit code 2, runs nothing, and changes no file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ctpo.cli.main import main

LIMIT_S = 60.0
"""A case takes far less. The first one that imports torch on a busy machine may not."""
RECIPE = "generation_batch_size: 32\nnum_generations: 4\nper_device_train_batch_size: 8\nrollout_batches: 1\n"
CODE = "open('ran', 'w').write('this code ran')\n"
TASK = "from ctpo.tasks import Problem, Task\n"
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
SURROGATE_PROMPT = '{"prompt": "1+1=", "answer": "2", "id": "\\ud83d"}\n'

# What is written, the command, and what the line must hold. A value of None makes a FIFO, and one that starts with
# "->" a link.
Files = dict[str, str | bytes | None]
RECIPES: list[tuple[str, Files, str, list[str]]] = [
    ("aliases", {"r.yaml": BOMB}, "train r.yaml", ["r.yaml is not YAML", "line 5", "aliases"]),
    ("alias of itself", {"r.yaml": "a: &a [*a]"}, "train r.yaml", ["line 1", "alias"]),
    ("unknown alias", {"r.yaml": "a: *b"}, "train r.yaml", ["undefined alias 'b'"]),
    ("tag", {"r.yaml": "task: !!python/object/apply:os.system ['touch ran']"}, "train r.yaml", ["line 1", "os.system"]),
    ("tag name", {"r.yaml": "task: !!python/name:os.system"}, "train r.yaml", ["os.system"]),
    ("own tag", {"r.yaml": "task: !mine x"}, "train r.yaml", ["'!mine'"]),
    ("binary", {"r.yaml": "task: !!binary aGk="}, "train r.yaml", ["binary"]),
    ("set", {"r.yaml": "task: !!set {a}"}, "train r.yaml", ["set"]),
    ("key twice", {"r.yaml": "seed: 1\nseed: 2\n"}, "train r.yaml", ["line 2", "'seed' is there twice"]),
    ("mapping as key", {"r.yaml": "? {a: 1}\n: 2\n"}, "train r.yaml", ["not a plain word"]),
    ("deep list", {"r.yaml": "a: " + "[" * 100_000}, "train r.yaml", ["nested more than 50 deep"]),
    ("deep mapping", {"r.yaml": "{a: " * 50_000}, "train r.yaml", ["nested more than 50 deep"]),
    ("two documents", {"r.yaml": "--- {seed: 1}\n--- {seed: 2}\n"}, "train r.yaml", ["another document"]),
    ("large", {"r.yaml": "#" * 300_000}, "train r.yaml", ["more than 262,144 bytes"]),
    ("nul", {"r.yaml": b"seed: 1\x00"}, "train r.yaml", ["not YAML"]),
    ("escape", {"r.yaml": b"seed: \x1b]0;title\x07"}, "train r.yaml", ["not YAML"]),
    ("escape in quotes", {"r.yaml": '"\\e[2J": 1'}, "train r.yaml", ["unknown key '\\x1b[2J'"]),
    ("right to left", {"r.yaml": "task: \u202eevil"}, "train r.yaml", ["\\u202eevil"]),
    ("surrogate", {"r.yaml": 'task: "\\ud800"'}, "train r.yaml", ["\\ud800"]),
    ("utf-16", {"r.yaml": "seed: 1".encode("utf-16")}, "train r.yaml", ["cannot be read", "utf-8"]),
    ("latin-1", {"r.yaml": b"task: \xe9"}, "train r.yaml", ["cannot be read", "utf-8"]),
    ("10,000 digits", {"r.yaml": f"seed: {'9' * 10_000}"}, "train r.yaml", ["4300 digits"]),
    ("1e999", {"r.yaml": "learning_rate: 1e999"}, "train r.yaml", ["learning_rate"]),
    ("octal", {"r.yaml": "rollout_batches: 0o17"}, "train r.yaml", ["rollout_batches='0o17'"]),
    ("sexagesimal", {"r.yaml": "rollout_batches: 1:30"}, "train r.yaml", ["rollout_batches='1:30'"]),
    ("date", {"r.yaml": "seed: 2026-01-31"}, "train r.yaml", ["seed='2026-01-31' is not of type int"]),
    ("no is false", {"r.yaml": "task: no"}, "train r.yaml", ["task=False is not of type str"]),
    ("number as key", {"r.yaml": "1: 2"}, "train r.yaml", ["unknown key '1'"]),
    ("null number", {"r.yaml": "num_generations: null"}, "train r.yaml", ["num_generations=None is out of range"]),
    ("long name", {"r.yaml": f"task: {'x' * 5000}"}, "train r.yaml", ["is unknown"]),
    ("list for a name", {"r.yaml": "task: [arithmetic]"}, "train r.yaml", ["task=['arithmetic'] is not of type str"]),
    ("recipe fifo", {"r.yaml": None}, "train r.yaml", ["it is not a regular file"]),
    ("recipe device", {"r.yaml": "->/dev/zero"}, "train r.yaml", ["it is not a regular file"]),
    ("recipe link to itself", {"r.yaml": "->r.yaml"}, "train r.yaml", ["cannot be read"]),
    ("recipe folder", {"r.yaml/x": ""}, "train r.yaml", ["Is a directory"]),
    ("code", {"r.yaml": "task: t.py", "t.py": CODE}, "train r.yaml",
     ["r.yaml sets task: t.py", "write task=t.py on the command line, or add --trust"]),
    ("code shown", {"r.yaml": "task: t.py", "t.py": CODE}, "train r.yaml --show", ["r.yaml sets task: t.py"]),
    ("code with data", {"r.yaml": "task: t.py:other@d", "t.py": CODE}, "train r.yaml", ["r.yaml sets task"]),
    ("no isolation", {"r.yaml": "unsafe_no_isolation: true"}, "train r.yaml", ["unsafe_no_isolation: true", "--trust"]),
    ("no isolation, as text", {"r.yaml": "unsafe_no_isolation: 'on'"}, "train r.yaml", ["unsafe_no_isolation: on"]),
    ("remote code", {"r.yaml": "trust_remote_code: true"}, "train r.yaml", ["trust_remote_code: true", "--trust"]),
    ("remote code, nested", {"r.yaml": "model_init_kwargs: {trust_remote_code: true}"}, "train r.yaml seed=1",
     ["write model_init_kwargs.trust_remote_code=true on the command line"]),
    ("remote code, as JSON", {"r.yaml": "model_init_kwargs: '{\"trust_remote_code\": 1}'"}, "train r.yaml",
     ["model_init_kwargs.trust_remote_code: 1"]),
    ("remote code, another way", {"r.yaml": "chat_template_kwargs: {a: [{trust_remote_code: true}]}"}, "train r.yaml",
     ["chat_template_kwargs.a"]),
    ("pickled weights", {"r.yaml": "model_init_kwargs: {weights_only: false}"}, "train r.yaml", ["weights_only"]),
    ("kernels", {"r.yaml": "model_init_kwargs: {attn_implementation: evil/kernel}"}, "train r.yaml", ["evil/kernel"]),
    ("code of a tool", {"r.yaml": "tools: [t.py:f]", "t.py": CODE}, "train r.yaml",
     ['r.yaml sets tools: ["t.py:f"]', 'write tools=["t.py:f"] on the command line, or add --trust']),
    ("code of a tool shown", {"r.yaml": "tools: t.py:f", "t.py": CODE}, "train r.yaml --show", ["r.yaml sets tools"]),
    ("plan with a tool", {"p.yaml": "common: {tools: [t.py:f]}\nobjectives: {ctpo: {}}\nseeds: {test: [0]}\n",
     "t.py": CODE}, "compare p.yaml --status", ["p.yaml sets tools"]),
    ("tool without a place", {}, "train tools=[search]", ["tool 'search' is no place"]),
    ("tool that is no list", {}, "train tools=t.py:f", ["tools='t.py:f' is not of type"]),
    ("another word said", {"r.yaml": "task: t.py\nunsafe_no_isolation: true", "t.py": CODE}, "train r.yaml task=t.py",
     ["unsafe_no_isolation"]),
    ("upload", {"r.yaml": "push_to_hub: true"}, "train r.yaml", ["push_to_hub: true", "somebody's account"]),
    ("token", {"r.yaml": "hub_token: abc"}, "train r.yaml", ["hub_token: abc"]),
    ("logger", {"r.yaml": "report_to: [tensorboard, wandb]"}, "train r.yaml", ["report_to"]),
    ("space", {"r.yaml": "trackio_space_id: a/b"}, "train r.yaml", ["trackio_space_id: a/b"]),
    ("server", {"r.yaml": "vllm_server_base_url: http://evil.example:80"}, "train r.yaml", ["evil.example"]),
    ("deepspeed", {"r.yaml": "deepspeed: ds.json"}, "train r.yaml", ["deepspeed: ds.json"]),
    ("shared", {"r.yaml": "shared: elsewhere"}, "train r.yaml", ["shared: elsewhere"]),
    ("setting in a fifo", {"r.yaml": "accelerator_config: f", "f": None}, "train r.yaml",
     ["accelerator_config=f cannot be read (it is not a regular file)"]),
    ("setting in a deep file", {"r.yaml": "fsdp_config: f", "f": "[" * 100_000}, "train r.yaml", ["fsdp_config=f"]),
    ("knobs of depth", {"r.yaml": f"objective_kwargs: '{'[' * 5000}'"}, "train r.yaml", ["objective_kwargs"]),
    ("knob of 400 digits", {"r.yaml": f"{RECIPE}objective_kwargs: {{log_high: {'9' * 400}}}"}, "train r.yaml",
     ["log_high: an integer of 400 digits"]),
    ("warm-up of no number", {"r.yaml": "warmup_steps: .nan"}, "train r.yaml", ["warmup_steps=nan is out of range"]),
    ("penalty of no number", {"r.yaml": "beta: .nan"}, "train r.yaml", ["beta=nan is out of range"]),
    ("steps without end", {"r.yaml": f"{RECIPE}save_steps: .inf"}, "train r.yaml", ["infinity"]),
    ("loading by a word", {"r.yaml": "model_init_kwargs: x"}, "train r.yaml", ["model_init_kwargs='x' is not JSON"]),
    ("loading by a list", {"r.yaml": "model_init_kwargs: '[1]'"}, "train r.yaml", ["model_init_kwargs='[1]'"]),
    ("program fifo", {"p.py": None}, "sandbox run p.py", ["'p.py' cannot be read (it is not a regular file)"]),
    ("program of zeros", {"p.py": "->/dev/zero"}, "sandbox run p.py", ["it is not a regular file"]),
    ("long path of a run", {}, f"report {'x' * 5000}", ["is too long for a path"]),
    ("long path of a model", {}, f"eval {'x' * 5000}", ["is too long for a path"]),
    ("plan with code", {"p.yaml": "common: {task: t.py}\nobjectives: {ctpo: {}}\nseeds: {test: [0]}\n", "t.py": CODE},
     "compare p.yaml --status", ["p.yaml sets task: t.py", "if you trust it, add --trust"]),
    ("plan whose recipe has code", {"p.yaml": "recipe: r.yaml\nobjectives: {ctpo: {}}\nseeds: {test: [0]}\n",
     "r.yaml": f"task: t.py\n{RECIPE}", "t.py": CODE}, "compare p.yaml --status", ["sets task: t.py"]),
    ("plan of nothing", {"p.yaml": "objectives: 7\n"}, "compare p.yaml", ["objectives=7 is not a mapping"]),
    ("plan of regimes", {"p.yaml": "objectives: {ctpo: {}}\nregimes: [1]\nseeds: {test: [0]}\n"}, "compare p.yaml",
     ["regimes=[1] is not a mapping"]),
    ("plan of seeds", {"p.yaml": "objectives: {ctpo: {}}\nseeds: {test: [x]}\n"}, "compare p.yaml",
     ["seeds.test=['x']"]),
    ("scores", {"p.yaml": "objectives: {ctpo: {}}\nseeds: {test: [0]}\n", "s.csv": b"a,b\n1,\x00\xff\n"},
     "compare p.yaml --status --scores s.csv", ["s.csv is damaged"]),
    ("scores fifo", {"p.yaml": "objectives: {ctpo: {}}\nseeds: {test: [0]}\n", "s.csv": None},
     "compare p.yaml --status --scores s.csv", ["s.csv is damaged"]),
    ("tables", {"t.json": "[" * 100_000}, "theory --policy t.json", ["t.json"]),
    ("tables fifo", {"t.npz": None}, "theory --policy t.npz", ["t.npz cannot be read"]),
    ("no task file", {}, "train task=t.py", ["t.py does not exist"]),
    ("task file that raises", {"t.py": "x = 1\nraise ValueError('no\\nno')"}, "train task=t.py",
     ["t.py line 2", "no no"]),
    ("task file that exits", {"t.py": "import sys; sys.exit(3)"}, "train task=t.py", ["SystemExit: 3"]),
    ("task file of nothing", {"t.py": "\x00"}, "train task=t.py", ["t.py cannot be run"]),
    ("task that is none", {"t.py": "task = 7"}, "train task=t.py", ["has int, not a Task"]),
    ("task without a check", {"t.py": TASK + "task = Task(name='x', problems=list, check=None)"}, "train task=t.py",
     ["neither a check nor an environment"]),
    ("profile", {"run/profile.jsonl": '{"step": 1, "batch": 1, "edge": "x"}\n'}, "calibrate run",
     ["profile.jsonl line 1"]),
    ("profile of digits", {"run/profile.jsonl": f'{{"step": {"9" * 10_000}}}\n'}, "calibrate run",
     ["line 1 is damaged"]),
    ("profile fifo", {"run/profile.jsonl": None}, "calibrate run", ["run has no profile.jsonl"]),
    ("report of nothing", {"run/config.yaml": None}, "report run", ["nothing to report"]),
    ("config of a bomb", {"run/config.yaml": BOMB}, "train --resume run", ["run/config.yaml is damaged", "aliases"]),
    ("config fifo", {"run/config.yaml": None}, "train --resume run", ["it is not a regular file"]),
    ("config with code", {"run/config.yaml": "task: t.py", "t.py": CODE}, "train --resume run --show",
     ["run/config.yaml sets task: t.py"]),
    ("run with code", {"run/config.yaml": "task: t.py", "t.py": CODE}, "eval run", ["write --task t.py", "--trust"]),
    ("config with a tool", {"run/config.yaml": "tools: [t.py:f]", "t.py": CODE}, "train --resume run --show",
     ["run/config.yaml sets tools"]),
    ("run with a tool", {"run/config.yaml": "tools: [t.py:f, os:x]", "t.py": CODE}, "eval run",
     ["write --tool t.py:f --tool os:x on the command line, or add --trust"]),
    ("run with an odd tool", {"run/config.yaml": "tools: {a: 1}"}, "eval run", ["run/config.yaml sets tools"]),
    ("run with odd lengths", {"run/config.yaml": "max_completion_length: [1]"}, "eval run",
     ["run/config.yaml: max_completion_length=[1] is not of type"]),
    ("run of an odd task", {"run/config.yaml": "task: {a: 1}"}, "eval run", ["run/config.yaml: task="]),
    ("model fifo", {"m/config.json": "{}", "m/x": None}, "eval m", ["x is not a regular file"]),
    ("model of text", {"m/config.json": "no"}, "eval m", ["model m cannot be loaded"]),
    ("model of depth", {"m/config.json": "[" * 100_000}, "eval m", ["model m cannot be loaded"]),
    ("model with code", {"m/config.json": '{"auto_map": {"AutoConfig": "x.C"}, "model_type": "evil"}', "m/x.py": CODE},
     "eval m", ["model m cannot be loaded"]),
]  # fmt: skip
DATASETS: list[tuple[str, str, str | bytes | None, list[str]]] = [
    ("escape", "d.jsonl", '{"prompt": 1}\n{\x1b[2J', ["line 2 is not JSON", "\\x1b[2J"]),
    ("not JSON with an escape", "d.jsonl", "{\x1b[2J\n", ["line 1 is not JSON", "\\x1b[2J"]),
    ("deep", "d.jsonl", "[" * 100_000, ["line 1 is not JSON"]),
    (
        "digits",
        "d.jsonl",
        f'{{"prompt": "a", "answer": {"9" * 10_000}}}',
        ["line 1 is not JSON", "4300 digits"],
    ),
    ("nested", "d.jsonl", '{"prompt": [{"role": "user"}], "answer": {}}', ["line 1: prompt has message 1"]),
    ("object", "d.jsonl", '{"prompt": "a", "answer": {"b": true}}', ["answer is {'b': True}"]),
    ("not UTF-8", "d.jsonl", b'{"prompt": "\xff"}', ["line 1 is not UTF-8 (byte 0xff)"]),
    ("fifo", "d.jsonl", None, ["it is not a regular file"]),
    ("folder", "d.jsonl/x", "", ["Is a directory"]),
    ("parquet of text", "d.parquet", "PAR1 no PAR1", ["cannot be read as parquet"]),
    ("parquet that is cut", "d.parquet", b"PAR1\x00\x00\xff\xff\xff\x7fPAR1", ["cannot be read as parquet"]),
    ("parquet fifo", "d.parquet", None, ["d.parquet cannot be read", "not a regular file"]),
    ("one row", "d.jsonl", SURROGATE_PROMPT, ["1 training problems do not fill"]),
]


def write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            os.mkfifo(path)
        elif isinstance(content, str) and content.startswith("->"):
            path.symlink_to(content[2:])
        else:
            path.write_bytes(
                content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
            )


def snapshot(folder: Path) -> dict[str, Any]:
    """The content of every file, or what else is there."""
    held: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        plain = path.is_file() and not path.is_symlink()
        held[str(path.relative_to(folder))] = path.read_bytes() if plain else mode
    return held


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a case. No file in it changes, and none is added: no code ran."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "ran").exists()


def refused(capsys: pytest.CaptureFixture[str], words: list[str], parts: list[str]) -> None:
    """Run the command; it must end with one line that holds these parts, and change nothing."""
    before, started = snapshot(Path()), time.monotonic()
    code = main(words)
    line = capsys.readouterr().err
    assert (code, line.count("\n")) == (2, 1), line
    assert line.startswith("ctpo: ")
    assert line[:-1].isprintable(), repr(line)
    assert len(line) < 2000
    assert all(part in line for part in parts), line
    assert snapshot(Path()) == before
    assert time.monotonic() - started < LIMIT_S


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("optim_args=a", "optim_args='a'"),
        ("optim=adamw_bnb_8bit", "bitsandbytes"),
        ("lr_scheduler_type=cosine_with_min_lr", "lr_scheduler_type=cosine_with_min_lr with"),
        ("report_to=clearml", "report_to=clearml needs the package clearml"),
    ],
)
def test_an_optimizer_that_cannot_be_made_leaves_no_run(
    folder: Path, capsys: pytest.CaptureFixture[str], setting: str, part: str
) -> None:
    few = "generation_batch_size=32 per_device_train_batch_size=8 rollout_batches=1 train_problems=8 output_dir=run"
    code = main(["train", *few.split(), setting])
    *progress, line = capsys.readouterr().err.splitlines()
    assert code == 2
    assert part in line
    assert all(each.endswith("…") for each in progress), progress
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("files", "command", "parts"), [pytest.param(*case[1:], id=case[0]) for case in RECIPES]
)
def test_file(capsys: pytest.CaptureFixture[str], files: Files, command: str, parts: list[str]) -> None:
    write(Path(), files)
    refused(capsys, command.split(), parts)


@pytest.mark.parametrize(
    ("name", "content", "parts"), [pytest.param(*case[1:], id=case[0]) for case in DATASETS]
)
def test_dataset(
    capsys: pytest.CaptureFixture[str], name: str, content: str | bytes | None, parts: list[str]
) -> None:
    dataset = name.split("/")[0]
    write(Path(), {name: content, "r.yaml": f"{RECIPE}dataset: {dataset}\noutput_dir: out\n"})
    refused(capsys, ["train", "r.yaml"], parts)


@pytest.mark.parametrize(
    "words",
    [
        ["r.yaml", "task=t.py"],
        ["r.yaml", "task=t.py", "unsafe_no_isolation=true"],
        ["r.yaml", "--trust"],
        ["r.yaml", "task=arithmetic"],
    ],
)
def test_the_command_line_may_allow_it(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    """Code counts if the command line names it; so the file is run exactly there."""
    unsafe = "unsafe_no_isolation: true\n" if len(words) == 3 else ""
    ran = "import pathlib; pathlib.Path('ran').touch()\n"
    problems = (
        "def p(split, count, seed): return []\ntask = Task(name='x', problems=p, check=lambda c, a: True)\n"
    )
    write(Path(), {"r.yaml": f"task: t.py\n{unsafe}{RECIPE}", "t.py": ran + TASK + problems})
    assert main(["train", *words, "--show"]) == 0, capsys.readouterr().err
    assert Path("ran").exists() == ("task=arithmetic" not in words)
    Path("ran").unlink(missing_ok=True)


# The rest damages one small run, which is trained once.
@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one rollout batch that was interrupted after half of its updates."""
    path = tmp_path_factory.mktemp("malformed") / "run"
    words = "generation_batch_size=32 num_generations=4 per_device_train_batch_size=8 rollout_batches=1"
    few = "eval_problems=2 train_problems=8 save_steps=2 transcripts=1 threads=1"
    assert main(["train", *words.split(), *few.split(), f"output_dir={path}"]) == 0
    shutil.rmtree(path / "checkpoint-4")
    (path / "summary.json").unlink()
    return path


class Touch:
    """Unpickling it makes a file."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, ("ran", "w")


PICKLE = pickle.dumps(Touch())
Damage = Callable[[Path], Any]


def holding(content: bytes) -> Damage:
    return lambda path: path.write_bytes(content)


def updated(**entries: Any) -> Damage:
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def first_line(**entries: Any) -> Damage:
    def change(path: Path) -> None:
        first, *rest = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps({**json.loads(first), **entries}), *rest, ""]))

    return change


def said(line: str) -> Damage:
    """Set one key of a recipe."""

    def change(path: Path) -> None:
        kept = [
            each for each in path.read_text().splitlines() if not each.startswith(line.split(":")[0] + ":")
        ]
        path.write_text("\n".join([*kept, line, ""]))

    return change


def link(target: str) -> Damage:
    def change(path: Path) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(Path(target).resolve())

    return change


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def fifo(path: Path) -> None:
    os.mkfifo(path)


def pickled_weights(path: Path) -> None:
    path.unlink()
    path.with_name("pytorch_model.bin").write_bytes(PICKLE)


def header(**tensor: Any) -> bytes:
    """A file of safetensors with one tensor that no model has."""
    text = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **tensor}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


CHECKPOINT = "checkpoint-2"
UNUSABLE = ["cannot be used", "start a new run"]
DAMAGE: list[tuple[str, str, Damage, list[str]]] = [
    ("pickled optimizer", "optimizer.pt", holding(PICKLE), UNUSABLE),
    ("pickled scheduler", "scheduler.pt", holding(PICKLE), UNUSABLE),
    ("pickled generator", "rng_state.pth", holding(PICKLE), UNUSABLE),
    ("pickled rollouts", "rollout_buffer_0.pt", holding(PICKLE), UNUSABLE),
    ("pickled weights", "model.safetensors", pickled_weights, UNUSABLE),
    ("cut rollouts", "rollout_buffer_0.pt", cut, UNUSABLE),
    ("cut optimizer", "optimizer.pt", cut, UNUSABLE),
    ("cut weights", "model.safetensors", cut, UNUSABLE),
    ("weights of 2^63 bytes", "model.safetensors", holding(struct.pack("<Q", 2**63) + b"{}"), UNUSABLE),
    ("other weights", "model.safetensors", holding(header()), UNUSABLE),
    ("weights of an odd type", "model.safetensors", holding(header(dtype="X")), UNUSABLE),
    ("state of another step", "trainer_state.json", updated(global_step=10**9), ["does not belong to step 2"]),
    ("state without a step", "trainer_state.json", updated(global_step=None), ["does not belong to step 2"]),
    ("state of text", "trainer_state.json", holding(b'"x"'), ["trainer_state.json"]),
    ("state of many epochs", "trainer_state.json", updated(epoch=1e12), ["epoch is 1000000000000.0"]),
    ("state of an odd history", "trainer_state.json", updated(log_history={}), ["log_history is {}"]),
    ("clock of text", "clock.json", holding(b'{"seconds": "x"}'), ["clock.json is damaged"]),
    ("clock without end", "clock.json", holding(b'{"seconds": 1e999}'), ["clock.json is damaged"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "damage", "parts"), [pytest.param(*case[1:], id=case[0]) for case in DAMAGE]
)
def test_forged_checkpoint(
    capsys: pytest.CaptureFixture[str],
    trained: Path,
    name: str,
    damage: Damage,
    parts: list[str],
) -> None:
    """The checkpoint is sealed again, as somebody who made it up would do."""
    from ctpo.runs.checkpoints import SEAL, seal, sealed_identity

    checkpoint = Path("run", CHECKPOINT)
    shutil.copytree(trained, "run")
    identity = sealed_identity(checkpoint)
    damage(checkpoint / name)
    (checkpoint / SEAL).unlink()
    seal(checkpoint, identity)
    refused(capsys, ["train", "--resume", "run"], parts)


SEALED = f"{CHECKPOINT}/complete.json"
BROKEN_SEAL = ["complete.json is damaged"]
RUN: list[tuple[str, str, Damage, list[str]]] = [
    ("seal of text", SEALED, holding(b"[]"), BROKEN_SEAL),
    ("seal of depth", SEALED, holding(b"[" * 100_000), BROKEN_SEAL),
    ("seal that leads out", SEALED, updated(files={"../../x": {"bytes": 1, "sha256": "x"}}), BROKEN_SEAL),
    ("seal of odd sizes", SEALED, updated(files={"optimizer.pt": {"bytes": {}, "sha256": "x"}}), BROKEN_SEAL),
    ("seal of an odd model", SEALED, updated(identity={"model": [1]}), BROKEN_SEAL),
    ("a cut file", f"{CHECKPOINT}/optimizer.pt", cut, ["optimizer.pt is truncated"]),
    ("records of text", "metrics.jsonl", holding(b"x\n"), ["metrics.jsonl line 1 is damaged"]),
    ("record without time", "metrics.jsonl", first_line(seconds=None), ["seconds of step 0 is None"]),
    ("record of an odd reward", "metrics.jsonl", first_line(reward="\x1b[2J"), ["reward of step 0", "\\x1b[2J"]),
    ("record of an odd accuracy", "metrics.jsonl", first_line(**{"heldout_pass@1": []}), ["heldout_pass@1 of step 0"]),
    ("records that lead out", "metrics.jsonl", link("victim"), ["metrics.jsonl is a link", "victim"]),
    ("transcripts that lead out", "transcripts", link(".."), ["transcripts is a link"]),
    ("fifo", "x", fifo, ["x is a device, a FIFO or a socket"]),
    ("sharded checkpoint", f"{CHECKPOINT}/.metadata", holding(PICKLE), ["a format that can hold code"]),
    ("no isolation", "config.yaml", said("unsafe_no_isolation: true"), ["sets unsafe_no_isolation: true"]),
    ("remote code", "config.yaml", said("model_init_kwargs: {trust_remote_code: true}"), ["trust_remote_code"]),
    ("code", "config.yaml", said("task: t.py"), ["sets task: t.py"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "parts"), [pytest.param(*case[1:], id=case[0]) for case in RUN])
def test_forged_run(
    capsys: pytest.CaptureFixture[str], trained: Path, name: str, damage: Damage, parts: list[str]
) -> None:
    shutil.copytree(trained, "run")
    write(Path(), {"victim": "precious\n", "t.py": CODE})
    damage(Path("run", name))
    refused(capsys, ["train", "--resume", "run"], parts)


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "metrics.jsonl", "profile.jsonl", "environment.json", "transcripts/batch-0000.jsonl"],
)
@pytest.mark.parametrize("kind", ["fifo", "device", "link", "digits", "escape", "deep"])
def test_a_report_shows_the_rest(
    capsys: pytest.CaptureFixture[str], trained: Path, name: str, kind: str
) -> None:
    """Nothing is waited for, no private file gets into the page, and nothing controls the terminal."""
    secret = Path("secret")
    secret.write_text('{"batch": 0, "step": 0, "completion": "my secret", "task": "my secret"}\n')
    shutil.copytree(trained, "run")
    path = Path("run", name)
    path.unlink()
    content = {
        "digits": f'{{"batch": {"9" * 10_000}}}',
        "escape": '{"\\u001b[2J": "\\u001b]0;x"',
        "deep": "[" * 100_000,
    }
    links = {"fifo": None, "device": "->/dev/zero", "link": f"->{secret.resolve()}"}
    write(Path("run"), {name: content[kind] if kind in content else links[kind]})
    assert main(["report", "run", "--output", "page.html"]) == 0
    printed = capsys.readouterr()
    assert path.name in printed.out
    assert all(line.isprintable() for line in (printed.out + printed.err).splitlines())
    assert "my secret" not in Path("page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(capsys: pytest.CaptureFixture[str], value: float) -> None:
    """They would sample nonsense, and the accuracy would be a figure like any other."""
    from safetensors.torch import load_file, save_file

    from ctpo.tasks.arithmetic import model_path

    shutil.copytree(model_path(), "m")
    weights = load_file("m/model.safetensors")
    next(iter(weights.values())).view(-1)[0] = value
    save_file(weights, "m/model.safetensors", metadata={"format": "pt"})
    refused(capsys, ["eval", "m", "--limit", "1"], ["model m holds NaN or infinity in"])


def test_a_task_whose_check_raises_names_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    own = "import dataclasses\nfrom ctpo.tasks.arithmetic.task import ARITHMETIC\ndef check(c, a):\n    return 1 / 0\n"
    write(Path(), {"t.py": own + "task = dataclasses.replace(ARITHMETIC, name='own', check=check)\n"})
    refused(
        capsys,
        ["eval", "embedded", "--task", "t.py", "--limit", "1"],
        ["t.py line 4: check raises ZeroDivisionError"],
    )


def own_reward(value: str) -> Any:
    """The reward function of a task file whose `reward` returns this expression for every response."""
    from ctpo.tasks import get_task, reward_function

    problems = f"def p(split, count, seed): return []\nreward = lambda c, a: {value}\n"
    write(
        Path(),
        {
            "t.py": TASK
            + problems
            + "task = Task(name='x', problems=p, check=lambda c, a: True, reward=reward)"
        },
    )
    return reward_function(get_task(str(Path("t.py").resolve())))


@pytest.mark.parametrize(
    ("value", "rewards"),
    [("1", [1.0]), ("None", [None]), ("True", [1.0]), ("float('nan')", [None]), ("float('-inf')", [None])],
)
def test_rewards_that_count(value: str, rewards: list[float | None]) -> None:
    judge = own_reward(value)
    if "float" in value:
        with pytest.warns(
            UserWarning, match=r"task 'x' \(.*t.py line \d+\): the reward of problem p7 is (nan|-inf)"
        ):
            assert judge(["q"], ["c"], ["2"], id=["p7"]) == rewards
    assert judge(["q"], ["c"], ["2"], id=["p7"]) == rewards


@pytest.mark.parametrize("value", ["'good'", "(1, 'why')", "[]", "{}", "b'1'"])
def test_rewards_that_are_no_numbers(value: str) -> None:
    from ctpo.errors import UserError

    judge = own_reward(value)
    with pytest.raises(UserError, match=r"the reward of problem p7 is .*, not a number"):
        judge(["q"], ["c"], ["2"], id=["p7"])
