"""accelerate understands the accelerate configurations in recipes/."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

FOLDER = Path(__file__).parents[2] / "recipes" / "accelerate"
KINDS = {
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_loads_it(name: str) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == KINDS[name]
    assert config.num_processes == 8


def test_every_key_is_an_option_of_the_launcher() -> None:
    """The loader accepts any key inside the sections; the launcher passes on only keys that are options of its own."""
    from accelerate.commands.launch import launch_command_parser

    options = set(vars(launch_command_parser().parse_args(["script"])))
    for path in FOLDER.glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        for section in ("fsdp_config", "deepspeed_config"):
            assert set(content.get(section, {})) <= options, path.name
