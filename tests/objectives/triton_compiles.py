"""Triton's compiler accepts the kernels, down to machine code for an H100. Run by test_triton.py; no GPU needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ctpo.objectives import preset, triton_launch

from .batches import make, run

TARGET = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.bool: "*i1",
    torch.uint8: "*u8",
    torch.int32: "*i32",
}


def compiled(tiles: Any, kernel: str, *args: Any, **constants: Any) -> str:
    """PTX of a kernel as a call would launch it."""
    source = getattr(triton_launch.kernels(), kernel)
    values = dict(zip(source.arg_names, (*args, tiles.length, tiles.chunks), strict=False))
    values |= {**constants, "BLOCK": tiles.block}
    signature = {}
    for name in source.arg_names:
        value = values[name]
        if name.isupper() or value is None:
            signature[name] = "constexpr"
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    fixed = {name: values[name] for name, kind in signature.items() if kind == "constexpr"}
    built = triton.compile(ASTSource(source, signature, fixed), target=TARGET, options={"num_warps": 8})
    assert built.asm["cubin"]
    return str(built.asm["ptx"])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("ctpo-prefix-gradient", torch.float32), ("minpro", torch.bfloat16), ("cispo", torch.float64)],
)
def test_compiles(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    code: dict[str, str] = {}

    def launch(tiles: Any, kernel: str, *args: Any, **constants: Any) -> None:
        code[kernel] = compiled(tiles, kernel, *args, **constants)

    monkeypatch.setattr(triton_launch.Tiles, "launch", launch)
    monkeypatch.setattr("ctpo.objectives.triton_path.applies", lambda backend, logps: True)
    batch = make(rows=2, length=4097).to(dtype)
    run(preset(name), batch)
    assert set(code) == {"scan_kernel", "terms_kernel", "gradient_kernel"}
    # The only traffic between programs of one kernel: an integer, ordered.
    assert code["terms_kernel"].count("atom.") == 1
    assert "atom.global.gpu.acq_rel.add.u32" in code["terms_kernel"]
