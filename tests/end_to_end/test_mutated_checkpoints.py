"""Checkpoints changed at random are read right, refused or suspected; `tests.mutated_checkpoints`.

`python -m tests.mutated_checkpoints` tries all of its seeds.
"""

import pytest

from tests.mutated_checkpoints import ALLOWED, MUTATIONS, SEEDS, Outcome, mutate, try_seed

pytestmark = pytest.mark.slow

TRIED = SEEDS[:100]
HARMLESS = [seed for seed in TRIED if mutate(seed)[1].is_harmless]


@pytest.mark.parametrize("seed", [seed for seed in TRIED if seed not in HARMLESS])
def test_a_mutated_checkpoint_is_never_served_wrongly_without_a_word(seed, tmp_path):
    outcome, told = try_seed(seed, tmp_path)
    assert outcome in ALLOWED, told


def test_a_fifth_of_the_mutations_is_harmless_and_these_load_unsuspected(tmp_path):
    assert len(HARMLESS) == len(TRIED) // 5
    tried = [try_seed(seed, tmp_path / str(seed)) for seed in HARMLESS]
    failed = [told for outcome, told in tried if outcome is not Outcome.RIGHT]
    assert len(failed) <= len(HARMLESS) // 20, failed


def test_every_mutation_is_tried_by_some_seed():
    assert {mutate(seed)[1].name for seed in SEEDS} == {mutation.name for mutation in MUTATIONS}
