from __future__ import annotations

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from engine.execution.host_ring import NUM_SECTIONS, DirectMemory, HostRing, section_bytes
from tests.engine.pinned_fakes import FakeMemory

CPU = torch.device("cpu")


def make_ring(num_bytes: int = 4096) -> tuple[HostRing, FakeMemory]:
    memory = FakeMemory()
    return HostRing(CPU, memory, num_bytes), memory


def test_what_is_sent_arrives_in_tensors_of_its_own():
    ring, memory = make_ring()
    ring.begin_step()
    numbers = np.arange(6).reshape(2, 3)
    sent = ring.send(numbers)
    halves = ring.send(np.array([0.5, -1.5], dtype=np.float32))
    target = torch.zeros(3, dtype=torch.int64)
    ring.send_into(target, np.array([7, 8, 9]))
    ring.end_step()
    numbers[:] = -1
    assert sent.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert halves.tolist() == [0.5, -1.5]
    assert halves.dtype == torch.float32
    assert target.tolist() == [7, 8, 9]
    assert not any(map(memory.holds, (sent, halves, target)))


def test_with_two_steps_in_flight_no_step_waits_for_its_memory():
    ring, memory = make_ring()
    for step in range(9):
        if step >= 2:
            memory.events[(step - 2) % NUM_SECTIONS].pass_it()  # the step before last has been read
        ring.begin_step()
        ring.send(np.arange(4))
        ring.end_step()
    assert ring.num_waits == 0
    assert len(memory.buffers) == NUM_SECTIONS


def test_memory_is_not_written_before_the_device_has_read_it():
    ring, memory = make_ring()
    for _ in range(NUM_SECTIONS):
        ring.begin_step()
        ring.send(np.arange(4))
        ring.end_step()
    memory.said.clear()
    ring.begin_step()
    assert memory.said == ["waited"]
    assert ring.num_waits == 1


def test_a_step_that_sends_more_than_a_section_holds_makes_it_grow_which_is_said_once():
    ring, memory = make_ring(num_bytes=128)
    with capture_logs() as logs:
        for _ in range(2 * NUM_SECTIONS):
            ring.begin_step()
            sent = [ring.send(np.full(10, number)) for number in range(4)]
            ring.end_step()
            for event in memory.events:
                event.pass_it()
            assert [one.tolist() for one in sent] == [[number] * 10 for number in range(4)]
    assert ring.num_growths >= NUM_SECTIONS
    assert len(memory.buffers) == NUM_SECTIONS + ring.num_growths
    grown = ring.num_growths
    ring.begin_step()
    ring.send(np.zeros(40, dtype=np.int64))
    assert ring.num_growths == grown  # what has grown stays so
    assert [line["event"] for line in logs] == ["host_memory_grew"]


def test_nothing_is_sent_outside_a_step():
    ring, _ = make_ring()
    with pytest.raises(RuntimeError, match="begin_step"):
        ring.send(np.zeros(1))
    ring.begin_step()
    ring.end_step()
    with pytest.raises(RuntimeError, match="begin_step"):
        ring.send(np.zeros(1))


def test_an_array_of_nothing_is_sent_too():
    ring, _ = make_ring()
    ring.begin_step()
    assert ring.send(np.empty((0, 4), dtype=np.int64)).shape == (0, 4)


def test_on_a_cpu_nothing_is_copied():
    direct = DirectMemory()
    direct.begin_step()
    array = np.arange(3)
    assert direct.send(array).data_ptr() == array.ctypes.data
    target = torch.zeros(3, dtype=torch.int64)
    direct.send_into(target, array)
    direct.end_step()
    assert target.tolist() == [0, 1, 2]


def test_a_section_holds_what_an_ordinary_step_of_that_size_sends():
    """Ids, positions and places of every token; tables of every slot."""
    sizes = {"max_num_seqs": 64, "max_num_batched_tokens": 8192, "block_size": 16}
    num_bytes = section_bytes(**sizes, max_model_len=8192)
    assert num_bytes >= 8192 * 8 * 5 + 64 * 512 * 8
    assert num_bytes < 2**22


def test_a_section_holds_where_all_lies_that_the_end_of_a_long_prompt_sees():
    """Pinned memory that grows in the midst of serving may keep the device waiting."""
    num_bytes = section_bytes(
        max_num_seqs=1, max_num_batched_tokens=512, block_size=16, max_model_len=2**20
    )
    assert num_bytes >= 8 * 2**20 + 8 * 2**20 // 16 + 512 * 8 * 5
