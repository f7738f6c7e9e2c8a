from __future__ import annotations

import pytest
import torch

from engine.execution.device_faults import find_fault, is_failed_capture, is_out_of_memory

ILLEGAL = (
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"
    " asynchronously reported at some other API call"
)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.AcceleratorError(ILLEGAL, 700), "an illegal memory access on the GPU"),
        (RuntimeError(ILLEGAL), "an illegal memory access on the GPU"),
        (
            RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
            "an illegal memory access on the GPU",
        ),
        (
            RuntimeError("CUDA error: device-side assert triggered"),
            "a failed assertion on the GPU",
        ),
        (RuntimeError("CUDA error: unspecified launch failure"), "a kernel that failed on the GPU"),
        (RuntimeError("CUDA error: misaligned address"), "a misaligned address on the GPU"),
        (RuntimeError("CUDA error: GPU is lost; the device is lost"), "the loss of the GPU"),
        (
            RuntimeError("CUDA error: uncorrectable ECC error encountered"),
            "a memory error of the GPU",
        ),
        (RuntimeError("CUDA error: something never seen before"), "an error of the GPU"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"),
            "an error of the GPU",
        ),
    ],
)
def test_a_lost_device_is_known_by_type_and_by_words(error: Exception, kind: str):
    fault = find_fault(error)
    assert fault is not None
    assert fault.kind == kind
    assert len(fault.advice) > 20
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        torch.AcceleratorError("CUDA error: out of memory", 2),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_too_little_memory_is_no_fault(error: Exception):
    assert is_out_of_memory(error)
    assert find_fault(error) is None


@pytest.mark.parametrize(
    "error",
    [
        ValueError("CUDA error: said by somebody else"),
        RuntimeError("shape '[3]' is invalid for input of size 4"),
        ZeroDivisionError(),
    ],
)
def test_other_errors_say_nothing_of_the_device(error: Exception):
    assert find_fault(error) is None
    assert not is_out_of_memory(error)
    assert not is_failed_capture(error)


def raised_from(first: Exception, then: Exception) -> Exception:
    """An error that was met while another one was dealt with."""
    try:
        try:
            raise first
        except Exception:
            raise then  # noqa: B904 - as clean-up code does
    except Exception as error:
        return error


CAPTURE = RuntimeError("CUDA error: operation failed due to a previous error during capture")


def test_what_led_to_an_error_counts_too():
    assert find_fault(raised_from(RuntimeError(ILLEGAL), KeyError("x"))) is not None
    assert find_fault(raised_from(torch.OutOfMemoryError("CUDA out of memory"), CAPTURE)) is None


def test_a_recording_that_failed_is_no_fault_and_its_reason_is_known():
    no_memory = raised_from(torch.OutOfMemoryError("CUDA out of memory"), CAPTURE)
    assert is_out_of_memory(no_memory)
    assert is_failed_capture(CAPTURE)
    assert find_fault(CAPTURE) is None
    lost = raised_from(RuntimeError(ILLEGAL), CAPTURE)
    assert find_fault(lost) is not None
    assert not is_out_of_memory(lost)
    assert not is_failed_capture(lost)


def test_pytorchs_own_refusal_of_what_a_recording_holds_is_one_too():
    """It never came to CUDA, whose words it does not have."""
    refused = RuntimeError(
        "Cannot copy between CPU and CUDA tensors during CUDA graph capture unless the CPU tensor"
        " is pinned."
    )
    assert is_failed_capture(refused)
    assert find_fault(refused) is None
