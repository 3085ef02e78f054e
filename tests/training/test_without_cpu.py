"""Without the folder `ctpo.cpu` everything still trains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ctpo import fast_cpu

SMALL = (
    "rollout_batches=1 generation_batch_size=16 num_generations=8 per_device_train_batch_size=8 train_problems=8 "
    "eval_problems=2 eval_every=0 transcripts=0 max_completion_length=80 save_steps=1000 compute_dtype=bfloat16"
).split()
_PROGRAM = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "ctpo.cpu" or name.startswith("ctpo.cpu."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from ctpo import fast_cpu
from ctpo.cli.main import main

assert not fast_cpu.PRESENT
code = main(sys.argv[1:])
assert not [name for name in sys.modules if name.startswith("ctpo.cpu")]
sys.exit(code)
"""


def test_a_run_trains_without_the_folder(tmp_path: Path) -> None:
    """In bfloat16, so that sampling and scoring take their plain ways there too."""
    run = tmp_path / "run"
    command = [sys.executable, "-c", _PROGRAM, "train", *SMALL, f"output_dir={run}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "SlowPassNote" not in done.stderr, done.stderr
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 2
    assert records[-1]["scored_rows"] > 0.5  # rows with an advantage went through the model
    assert (run / "model" / "model.safetensors").is_file()


def test_with_the_folder_it_is_used() -> None:
    """A module that could not be imported would count as absent, and only the time would show it."""
    assert fast_cpu.PRESENT
