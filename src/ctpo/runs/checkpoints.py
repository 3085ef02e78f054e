"""Checkpoints that can be trusted: sealed once they are complete, and examined before a run continues from one.

A checkpoint is written in a staging folder. When it is complete, a seal is added: a file that lists all the others
with their sizes and digests. Then the folder moves into place in one rename. So a folder `checkpoint-8` was complete
once, and the seal shows whether it was damaged later.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ctpo.errors import UserError
from ctpo.runs.atomic import sync_folder, write_json
from ctpo.runs.command import resume_words
from ctpo.runs.files import leads_out, read_text

SEAL = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_CLOCKS = "clock.json"
_LONGEST_S = 1e10  # three hundred years
ASIDE = "set-aside"
STAGING = ".saving"
"""The folder of a run in which a checkpoint is written before it moves into place."""
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_DISK_WORDS = (
    "no space left",
    "file too large",
    "disk quota",
    "file write failed",
    "unexpected pos",
    "iostream",
)
"""Parts of the messages with which torch and safetensors report a full disk."""


class Unusable(ValueError):
    """A run cannot continue from this checkpoint; the message gives the reason."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The checkpoint that a run continues from."""

    checkpoint: Path | None
    """None if the run has no checkpoint yet."""
    refused: tuple[tuple[str, str], ...] = ()
    """Newer checkpoints that cannot be used, each with the reason."""

    def notices(self, run: Path) -> Iterator[str]:
        """What the user should know when the run in this directory is resumed, one line each."""
        for name, reason in self.refused:
            yield f"{name} is refused: {reason}"
        if self.checkpoint is None:
            yield f"{run} has no checkpoint yet; starting again from the beginning"
        else:
            yield f"continuing from {self.checkpoint.name}"


@dataclass(frozen=True, kw_only=True)
class Clocks:
    """How long a run had taken when a checkpoint was saved, in seconds."""

    seconds: float = 0.0
    """Since the run started, without the time between its interrupted parts."""
    batch_seconds: float = 0.0
    """Since the current rollout batch started."""


def write_clocks(folder: Path, clocks: Clocks) -> None:
    """Write the clocks into a checkpoint that is not sealed yet."""
    write_json(folder / _CLOCKS, asdict(clocks))


def read_clocks(checkpoint: Path | None) -> Clocks:
    """Return the clocks of a checkpoint; zeros without a checkpoint, or for one that `CTPOTrainer` saved in Python.

    Raises:
        UserError: if they are damaged.
    """
    path = checkpoint / _CLOCKS if checkpoint else None
    if path is None or not path.is_file():
        return Clocks()
    try:
        clocks = Clocks(**json.loads(read_text(path)))
        if not all(0 <= float(value) < _LONGEST_S for value in vars(clocks).values()):
            raise ValueError("a time is out of range")
    except (OSError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise UserError(
            f"{path} is damaged ({error}); resume from another checkpoint, or start a new run"
        ) from None
    return clocks


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps done when the checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def is_checkpoint(path: Path) -> bool:
    """Return whether the path has the name of a checkpoint and lies in a run's directory."""
    return bool(_NAME.fullmatch(path.name)) and (path.parent / "config.yaml").is_file()


def all_checkpoints(run: Path) -> list[Path]:
    """Return the paths of a run's checkpoints, the newest first, damaged ones included."""
    return sorted((p for p in run.glob("checkpoint-*") if _NAME.fullmatch(p.name)), key=step_of, reverse=True)


def seal(folder: Path, identity: Mapping[str, Any]) -> None:
    """Force every file of a checkpoint to the disk, then write the seal.

    Args:
        folder: the checkpoint.
        identity: of the run it belongs to; `examine` compares it later.
    """
    files = {}
    for path in _files(folder):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": digest}
    write_json(folder / SEAL, {"identity": plain(identity), "files": files})
    for each in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(each)


def examine(folder: Path, identity: Mapping[str, Any]) -> None:
    """Check that a checkpoint is undamaged and belongs to this run.

    Args:
        folder: the checkpoint.
        identity: of the run that is to continue from it. Only the entries given here are compared.

    Raises:
        Unusable: if it does not, with the reason.
    """
    sealed = _read_seal(folder)
    for name, facts in sealed["files"].items():
        path = folder / name
        if not path.is_file():
            raise Unusable(f"{name} is missing")
        size = path.stat().st_size
        if size != facts["bytes"]:
            what = "truncated" if size < facts["bytes"] else "damaged"
            raise Unusable(f"{name} is {what} ({size} bytes instead of {facts['bytes']})")
    compare(sealed["identity"], identity)
    for name, facts in sealed["files"].items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                raise Unusable(f"{name} is damaged (its content has changed since it was saved)")


def sealed_identity(folder: Path) -> dict[str, Any]:
    """Return the identity of the run that saved the checkpoint, from its seal.

    Raises:
        Unusable: if the seal is missing or damaged.
    """
    identity: dict[str, Any] = _read_seal(folder)["identity"]
    return identity


def choose(run: Path, identity: Mapping[str, Any], named: Path | None = None) -> Choice:
    """Return the checkpoint that a run continues from.

    Args:
        run: the run's directory.
        identity: of the run; see `examine`.
        named: the checkpoint that the user asked for; None takes the newest undamaged one.

    Raises:
        UserError: if the named checkpoint cannot be used, or if there are checkpoints and none can be used.
    """
    if named is not None:
        try:
            examine(named, identity)
        except Unusable as reason:
            raise UserError(
                f"{named} cannot be resumed: {reason}; {_instead(run, identity, named)}"
            ) from None
        return Choice(checkpoint=named)
    refused: list[tuple[str, str]] = []
    for checkpoint in all_checkpoints(run):
        try:
            examine(checkpoint, identity)
        except Unusable as reason:
            refused.append((checkpoint.name, str(reason)))
        else:
            return Choice(checkpoint=checkpoint, refused=tuple(refused))
    if refused:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused)
        raise UserError(f"no checkpoint of {run} can be resumed ({reasons}); start a new run")
    return Choice(checkpoint=None)


def set_aside_newer(run: Path, checkpoint: Path | None) -> None:
    """Move the checkpoints after this one to a folder of their own, because the run will take those steps again.

    Otherwise a later resume could continue from one of them, and the records in between would be missing.
    """
    step = -1 if checkpoint is None else step_of(checkpoint)
    for newer in all_checkpoints(run):
        if step_of(newer) > step:
            target = run / ASIDE / newer.name
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(newer, target)


def last_good(run: Path) -> Path | None:
    """Return the newest undamaged checkpoint of a run, or None. It is not examined whose run it belongs to."""
    for checkpoint in all_checkpoints(run):
        try:
            examine(checkpoint, {})
        except Unusable:
            continue
        return checkpoint
    return None


def publish(folder: Path, target: Path) -> None:
    """Move a sealed checkpoint from the staging folder into place, in one rename.

    A checkpoint that is already there under that name, because its step was taken again, is replaced.
    """
    old = folder.parent / "old"
    if target.exists():
        os.replace(target, old)
    os.replace(folder, target)
    sync_folder(target.parent)
    shutil.rmtree(folder.parent, ignore_errors=True)


def rotate(run: Path, limit: int | None, best: str | None = None) -> None:
    """Remove all checkpoints of a run but the newest `limit`; None removes nothing.

    The newest and the one named `best` always stay, and count. Each of the others is moved into the staging folder
    before it is deleted, so that a kill never leaves half a checkpoint.
    """
    held = all_checkpoints(run)
    spare = [each for each in held[1:] if each.name != best]
    for old in spare[max(0, limit - (len(held) - len(spare))) :] if limit else []:
        away = run / STAGING / old.name
        away.parent.mkdir(exist_ok=True)
        os.replace(old, away)
    shutil.rmtree(run / STAGING, ignore_errors=True)


def is_disk_error(error: BaseException) -> bool:
    """Return whether writing failed because the disk is full, over a quota, read-only or broken."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _DISK_ERRORS
    return any(word in str(error).lower() for word in _DISK_WORDS)


def reason(error: BaseException) -> str:
    """Return the cause of a disk error in a few words, for an error message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).lower()
    cut_short = "a file was cut short, as on a full disk"  # all that torch.save says
    names = (os.strerror(number) for number in _DISK_ERRORS)
    return next((name for name in names if name.lower() in text), cut_short)


def advice(run: Path, *, room: bool = True) -> str:
    """Return a sentence on what a user can continue from after a failure, and how.

    Args:
        run: the run's directory.
        room: whether the disk was full, so that space must be freed first.
    """
    good, first = last_good(run), "free some space and " if room else ""
    if good is None:
        return f"no checkpoint was saved before: {first}start again"
    return f"{good.name} is intact: {first}continue with `{resume_words(run)}`"


def compare(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check that a checkpoint's identity is that of the run.

    Args:
        held: the identity in the checkpoint's seal.
        wanted: the run's. Only its entries among `world_size`, `recipe` and `model` are compared.

    Raises:
        Unusable: if they differ, naming the first difference.
    """
    wanted = plain(wanted)
    if "world_size" in wanted and held.get("world_size") != wanted["world_size"]:
        saved, now = held.get("world_size"), wanted["world_size"]
        how = (
            f"with `torchrun --nproc_per_node {saved}`"
            if saved != 1
            else "with one process, without torchrun"
        )
        raise Unusable(
            f"it was saved by {saved} process{'es' if saved != 1 else ''} and this is {now}; resume {how}"
        )
    there, here = held.get("recipe", {}), wanted.get("recipe", {})
    for name in sorted({*there, *here} if here else ()):
        if there.get(name) != here.get(name):
            raise Unusable(
                f"it is another run's ({name} is {there.get(name)!r} there, {here.get(name)!r} here)"
            )
    model_there, model_here = held.get("model"), wanted.get("model")
    if model_here and model_there != model_here:
        raise Unusable(f"it is another model's ({_model(model_there)} there, {_model(model_here)} here)")


def plain(value: Any) -> Any:
    """Return the value as it would come back from a JSON file; what JSON does not know becomes a string."""
    return json.loads(json.dumps(value, default=str))


def _model(facts: Any) -> str:
    return (
        f"{facts.get('parameters')} parameters of shapes {str(facts.get('shapes'))[:8]}" if facts else "none"
    )


def _instead(run: Path, identity: Mapping[str, Any], named: Path) -> str:
    try:
        other = choose(run, identity).checkpoint
    except UserError:
        other = None
    if other is None:
        return "there is no good one; start a new run"
    return f"the last good one is {other}: give that, or {run} to have it chosen"


def _read_seal(folder: Path) -> dict[str, Any]:
    path = folder / SEAL
    if not folder.is_dir():
        raise Unusable("it does not exist")
    if not path.is_file():
        raise Unusable(f"it is incomplete (it has no {SEAL})")
    try:
        sealed = json.loads(read_text(path))
        if not isinstance(sealed, dict):
            raise ValueError
        for name, kinds in (("recipe", dict), ("model", dict), ("world_size", int)):
            if not isinstance(sealed["identity"].get(name), (kinds, type(None))):
                raise ValueError
        for name, facts in sealed["files"].items():
            if leads_out(folder / name, folder) or not isinstance(facts["sha256"], str):
                raise ValueError
            int(facts["bytes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise Unusable(f"{SEAL} is damaged") from None
    return sealed


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / SEAL)
