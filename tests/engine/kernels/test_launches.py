from engine.kernels.launches import count, counted


def test_launches_are_counted_by_name_while_somebody_asks():
    count("before")
    with counted() as launches:
        count("add_norm")
        count("silu_mul")
        count("add_norm")
    count("after")
    assert launches == {"add_norm": 2, "silu_mul": 1}


def test_who_asks_within_another_takes_nothing_from_it():
    with counted() as outer:
        with counted() as inner:
            count("add_norm")
        count("add_norm")
    assert inner == {"add_norm": 1}
    assert outer == {"add_norm": 2}
