"""The examples in docstrings run, and give what their comments say."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from handbook import api

from tests.documents.given import names

NEEDS = {
    "from_openenv": "a server",
    "from_verifiers": "an environment of verifiers",
    "from_trl": "a class of the reader",
    "fidelity": "two checkpoints",
    "TransformersEngine": "a model",
    "Partner": "a model",
    "FunctionCaller": "a tool of the reader",
    "CTPOTrainer": "a model and data; README's script runs in test_documents.py",
    "FunctionTool": "titles of the reader",
}
"""Public names whose example cannot run here, and what is missing."""
WITHOUT = {
    "what another public name returns, whose example shows it": (
        "Calibration Correction Evaluation JudgedResponse Analysis CriticRow Crossing Pull Row Estimator Sizes"
    ),
    "needs several processes": "SequenceShard contiguous striped zigzag gather_values gather_tables",
    "needs a model, and some of them minutes": "train evaluate sample_problems sample_task summarise Scorer Rows",
    "needs a server or a GPU": "Endpoint EndpointEngine VLLMEngine",
    "the page shows what a part must have; `Objective` and the parts themselves are the examples": (
        "Ratio Statistic TrustRegion Limits Bases Surrogate TokenTerms log_weight ceiling_of drop beyond at_bound "
        "no_token"
    ),
    "an engine calls it or makes it; `Environment` has the example": (
        "Called EnvironmentWithTools DeclaredTool Unscorable Step conversation opening step_of use_of reward_of "
        "check_environment failure made_wrong method_name ToolRunner"
    ),
    "`Setup` makes it, and it has an example": "Policy Sharing",
    "needs a file": "read_tables",
    "an exception": "SandboxUnavailable",
}
"""Public classes and functions without an example, by the reason."""


def public() -> Iterator[tuple[str, str, Any]]:
    """Every public name with its module and its object; adapters are left out, because their trainers are not here."""
    for modules in api.PAGES.values():
        for module in modules:
            if not module.startswith("ctpo.adapters"):
                for name in api.public_names(module):
                    yield module, name, getattr(import_module(module), name)


def example(thing: Any) -> str:
    """The code of the example in a docstring; empty if there is none."""
    text = inspect.getdoc(thing) or ""
    found = re.search(r"^Example:(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        return ""
    code = found[1].strip("\n") if "\n" in found[1].strip() else found[1].strip().strip("`.")
    lines = textwrap.dedent(code).splitlines()
    return "\n".join(line.removeprefix(">>> ") for line in lines)


EXAMPLES = [(module, name) for module, name, thing in public() if example(thing) and name not in NEEDS]


@pytest.mark.parametrize(("module", "name"), EXAMPLES, ids=lambda value: str(value))
def test_an_example_runs(module: str, name: str) -> None:
    thing = getattr(import_module(module), name)
    scope = {**names(), **_kin(), **vars(inspect.getmodule(thing) or object), "torch": torch}
    code = example(thing)
    lines = code.splitlines()
    for node in ast.parse(code).body:
        statement = ast.get_source_segment(code, node) or ""
        if not isinstance(node, ast.Expr):
            exec(statement, scope)
            continue
        value = eval(statement, scope)
        _, mark, said = lines[(node.end_lineno or 1) - 1][node.end_col_offset :].partition("# ")
        if mark:
            _compare(value, said)


def _compare(value: Any, said: str) -> None:
    """Compare a value with the literal of a comment; a comment in words says nothing to compare."""
    try:
        wanted = ast.literal_eval(said.strip())
    except (SyntaxError, ValueError):
        return
    if isinstance(value, torch.Tensor):
        torch.testing.assert_close(value.double(), torch.tensor(wanted).double(), atol=0.006, rtol=0)
    else:
        assert value == wanted


def _kin() -> dict[str, Any]:
    """Names of other modules that the examples use."""
    from ctpo.lab import theory
    from ctpo.objectives import clipped_mean, divergences, ratios, soft_surrogates, surrogates, trust_regions
    from ctpo.tasks import Problem, Task

    return {
        **vars(theory),
        **{
            name: getattr(part, name)
            for part in (ratios, clipped_mean, trust_regions, divergences, surrogates, soft_surrogates)
            for name in api.public_names(part.__name__)
        },
        "Problem": Problem,
        "Task": Task,
        "problems": lambda split, count, seed: [],
        "entropies": torch.ones(4, 9),
        "batch": _batch(),
        "out": SimpleNamespace(loss=torch.tensor(0.0)),
    }


def _batch() -> tuple[torch.Tensor, ...]:
    """Log-probs that have drifted over 8 responses of 20 tokens, as `objective(*batch)` takes them."""
    old_logps = -2 - torch.rand(8, 20)
    logps = old_logps + 0.1 * torch.randn(8, 20)
    return logps, old_logps, torch.randn(8), torch.ones(8, 20)


def test_a_wrong_comment_is_found() -> None:
    with pytest.raises(AssertionError):
        _compare(torch.tensor([1.0, 2.0]), "[1.0, 2.1]")
    with pytest.raises(AssertionError):
        _compare("a", '"b"')


def test_every_public_name_has_an_example_or_a_reason() -> None:
    excused = {name for names_ in WITHOUT.values() for name in names_.split()}
    lacking = {
        name
        for module, name, thing in public()
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and not example(thing)
    }
    # Two rooms have a `Problem`; that of the theory is made by `Setup`.
    assert lacking - {"Problem"} == excused
