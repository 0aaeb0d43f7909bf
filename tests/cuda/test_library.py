"""The binding and the registration, on the stand-in runtime: values, refusals, outputs, what is put back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ds4export.cuda import library as binding
from ds4export.cuda.library import KernelLibrary, signature
from ds4export.cuda.register import UNWRITTEN_INTEGER, Caller, registered
from ds4export.errors import RuntimeInputError, ToolchainError
from ds4export.ops import ALL_OPS
from tests.cuda.cases import cases_of, small
from tests.cuda.check_ops import check_op
from tests.cuda.child import SMALL_CASES, SMALL_ELEMENTS
from tests.cuda.conftest import OPS
from tests.plugins import host

ds4 = torch.ops.ds4


def norm_inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 48).bfloat16(), torch.randn(48).bfloat16()


def test_library_has_the_ops_that_were_asked_for(library: KernelLibrary) -> None:
    assert sorted(library.ops) == sorted(OPS)


@pytest.mark.parametrize("op", OPS)
def test_every_case(library: KernelLibrary, op: str) -> None:
    found = check_op(Caller(library, poison=True), op, cases_of(op), "cpu")
    assert found.wrong == []
    assert found.num_cases == len(cases_of(op)) > 0
    assert found.num_values > 0


@pytest.mark.parametrize("op", list(ALL_OPS))
def test_no_case_of_the_host_checks_is_left_out(op: str) -> None:
    assert {c.name for c in host.cases_of(op)} <= {c.name for c in cases_of(op)}


@pytest.mark.parametrize("op", list(ALL_OPS))
def test_a_sanitizer_gets_cases_of_every_op(op: str) -> None:
    assert len(small(op, cases_of(op), SMALL_ELEMENTS, SMALL_CASES)) >= 3


def test_torch_ops_run_by_the_kernels_and_then_by_the_references(library: KernelLibrary) -> None:
    x, weight = norm_inputs()
    with registered(Caller(library), "cpu"):
        got = ds4.rms_norm(x, weight, 1e-6)
        with pytest.raises(RuntimeInputError, match="`x` of `rms_norm` has a dtype"):
            ds4.rms_norm(x.float(), weight, 1e-6)
    assert torch.equal(got, ds4.rms_norm(x, weight, 1e-6))
    assert ds4.rms_norm(x.float(), weight, 1e-6).dtype == torch.float32


def test_a_launcher_refuses_in_its_own_words(library: KernelLibrary) -> None:
    x, weight = norm_inputs()
    with pytest.raises(RuntimeInputError) as refused:
        Caller(library)(ALL_OPS["rms_norm"], [x, weight[:31].clone()], [1e-6])
    assert refused.value.found == "`weight` has 31 values for rows of 48"


def test_a_library_of_another_version_is_refused(
    library: KernelLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = {**ALL_OPS, "rms_norm": replace(ALL_OPS["rms_norm"], version=7)}
    monkeypatch.setattr(binding, "ALL_OPS", ops)
    with pytest.raises(ToolchainError, match="the library's `rms_norm` is not the op") as refused:
        KernelLibrary(library.path)
    assert refused.value.found == "rms_norm 1(x bf16, weight bf16; eps float) -> y bf16"


def test_no_library_is_refused(library: KernelLibrary) -> None:
    with pytest.raises(ToolchainError, match="the kernel library cannot be loaded"):
        KernelLibrary(library.path.with_name("libother.so"))


def test_signature_names_shared_buffers_and_text() -> None:
    assert signature(ALL_OPS["moe"]).endswith("weight_format str) -> partial float32")
    assert signature(ALL_OPS["attention_window"]).endswith("-> o bf16, ring_out bf16 @2")
    assert "(q bf16, kv bf16, ring bf16 ~1, sink float32" in signature(ALL_OPS["attention_window"])
    assert signature(ALL_OPS["mtp_merge"]) == "mtp_merge 1(e bf16, h bf16) -> out bf16"


def test_strided_inputs_are_made_contiguous(library: KernelLibrary) -> None:
    x, weight = norm_inputs()
    wide = torch.cat((x, x), 1)[:, :48]
    assert not wide.is_contiguous()
    (got,) = Caller(library)(ALL_OPS["rms_norm"], [wide, weight], [1e-6])
    assert torch.equal(got, ALL_OPS["rms_norm"].reference(x, weight, 1e-6))


def test_poison_is_what_nobody_wrote(library: KernelLibrary) -> None:
    caller = Caller(library, poison=True)
    made = caller._allocated(torch.empty(3, dtype=torch.int64, device="meta"), torch.device("cpu"))
    assert made.tolist() == [UNWRITTEN_INTEGER] * 3
    made = caller._allocated(torch.empty(2, device="meta"), torch.device("cpu"))
    assert torch.isnan(made).all()
