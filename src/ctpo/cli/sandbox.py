"""`ctpo sandbox check` tests the isolation on this machine. `ctpo sandbox run FILE` runs one program in it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Final

from ctpo.errors import UserError, printable
from ctpo.runs.files import read_text
from ctpo.sandbox import Sandbox, SandboxResult, SandboxUnavailable
from ctpo.sandbox.isolation.probe import Check

ENGINES: Final = ("bubblewrap", "landlock")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ctpo sandbox`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="{check,run}")
    check = actions.add_parser("check", help="try to break out, with each engine, and print what happened")
    check.add_argument("--json", action="store_true", help="print JSON instead of a table")
    single = actions.add_parser("run", help="run one program and print its output")
    single.add_argument("file", metavar="FILE", help="the program; - reads it from standard input")
    single.add_argument("--timeout-s", type=float, default=3.0, help="seconds it may take (default 3)")
    single.add_argument("--memory-mb", type=int, default=512, help="MiB it may use (default 512)")
    single.add_argument("--engine", choices=("auto", *ENGINES), default="auto", help="how it is confined")
    single.add_argument("--json", action="store_true", help="print status, output and times as JSON")
    single.add_argument(
        "--unsafe-no-isolation",
        action="store_true",
        help="run it WITHOUT isolation: it can then do whatever you can",
    )


def run(args: argparse.Namespace) -> int:
    """Carry out the command. Return 0 for success, 1 for a failed program or missing isolation, 2 for bad input."""
    return _check(args.json) if args.action == "check" else _run_file(args)


def _check(as_json: bool) -> int:
    findings = {engine: _try_engine(engine) for engine in ENGINES}
    holding = [engine for engine, (checks, _) in findings.items() if checks and all(c.held for c in checks)]
    if as_json:
        report = {
            engine: {"reason": reason, "checks": [dataclasses.asdict(check) for check in checks]}
            for engine, (checks, reason) in findings.items()
        }
        print(json.dumps({"engine": holding[0] if holding else None, "engines": report}, indent=2))
    else:
        _print_table(findings)
        print(
            f"\nPrograms run with: {holding[0]}"
            if holding
            else "\nNo isolation holds here; the sandbox refuses to run."
        )
    return 0 if holding else 1


def _try_engine(engine: str) -> tuple[list[Check], str]:
    """The checks that ran under an engine, and why the engine is not available ("" if it is)."""
    try:
        with Sandbox(engine=engine, workers=1, memory_mb=256) as sandbox:
            return sandbox.checks, ""
    except SandboxUnavailable as unavailable:
        return [], str(unavailable).removeprefix("no isolation here: ").partition(". To run programs")[0]


def _print_table(findings: dict[str, tuple[list[Check], str]]) -> None:
    names = list(dict.fromkeys(check.name for checks, _ in findings.values() for check in checks))
    print(f"{'a program tries':<20}" + "".join(f"{engine:<14}" for engine in findings))
    for name in names:
        row = f"{name.replace('_', ' '):<20}"
        for checks, _ in findings.values():
            row += f"{next((_verdict(check) for check in checks if check.name == name), '-'):<14}"
        print(row.rstrip())
    for engine, (_, reason) in findings.items():
        if reason:
            print(f"{engine}: {reason}")


def _verdict(check: Check) -> str:
    if check.name == "threads":
        return "works" if check.held else "FAILS"
    return "denied" if check.held else "NOT DENIED"


def _run_file(args: argparse.Namespace) -> int:
    try:
        text = sys.stdin.read() if args.file == "-" else read_text(Path(args.file))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{args.file!r} cannot be read ({reason}); give a Python file, or - for stdin"
        ) from None
    try:
        with Sandbox(
            timeout_s=args.timeout_s,
            memory_mb=args.memory_mb,
            workers=1,
            engine=args.engine,
            unsafe_no_isolation=args.unsafe_no_isolation,
        ) as sandbox:
            result = _run_warned(sandbox, text)
    except ValueError as error:
        print(f"ctpo sandbox run: {error}", file=sys.stderr)
        return 2
    except SandboxUnavailable as error:
        hint = str(error).replace("Sandbox(unsafe_no_isolation=True)", "--unsafe-no-isolation")
        print(f"ctpo sandbox run: {hint}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(dataclasses.asdict(result)))
    else:
        for stream, text in ((sys.stdout, result.stdout), (sys.stderr, result.stderr)):
            stream.write(printable(text) if stream.isatty() else text)
        if not result.ok:
            print(f"[{result.status} after {result.wall_s:.2f} s]", file=sys.stderr)
    return 0 if result.ok else 1


def _run_warned(sandbox: Sandbox, text: str) -> SandboxResult:
    """Run one program, and print the sandbox's warnings to stderr, one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = sandbox.run([text])[0]
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return result
