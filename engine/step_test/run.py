"""The stages of the test of an engine's steps, to be run in the order in which they stand here.

Kernels, flash attention, then the whole step as it comes, then graphs: so a failure speaks against
what is new in its stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.step_test.first_tokens import check_first_tokens
from engine.step_test.graphs import check_graphs
from engine.step_test.kernels import KernelTest
from engine.step_test.prompt_attention import check_flash, takes_flash
from engine.step_test.step_check import unit_roundoff

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.core import Engine
    from engine.kernels.step_kernels import StepKernels
    from engine.step_test.reference_pass import ReferencePass
    from engine.step_test.step_check import StepCheck
    from engine.step_test.step_sizes import StepSizes


def check_kernels(
    kernels: StepKernels, reference: StepKernels, sizes: StepSizes
) -> Iterator[StepCheck]:
    """Compare step kernels with the references; before an engine has been built around them."""
    yield from KernelTest(kernels, reference, sizes).run()


def check_prompt_attention(sizes: StepSizes) -> Iterator[StepCheck]:
    """Compare flash attention with PyTorch's plain one; nothing where prompts do without."""
    if takes_flash(sizes):
        yield from check_flash(sizes)


def check_whole_step(
    engine: Engine, reference: ReferencePass, sizes: StepSizes, *, linear_unit: float
) -> Iterator[StepCheck]:
    """Compare the first layers' answers with the reference's; steps run as they come.

    linear_unit: the largest relative error of one rounding in linear layers.
    """
    # What is attended to is an average, in which roundings of keys and values mostly cancel.
    kept = unit_roundoff(sizes.kept_as) / 4
    unit = max(unit_roundoff(sizes.dtype), kept, linear_unit)
    with engine.eagerly(), engine.first_layers(reference.num_layers):
        yield check_first_tokens(engine, reference, unit)


def check_recorded_steps(engine: Engine, sizes: StepSizes) -> Iterator[StepCheck]:
    """Compare recorded steps with the same steps as they come."""
    yield from check_graphs(engine, sizes.max_num_seqs, unit_roundoff(sizes.dtype))
