"""Spec strings: what is wrong is named, and each opens its backend."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.loop import MS, Loop
from hal.errors import HalError, Refused, Unavailable
from hal.mock.kernel import VirtualKernel
from hal.mock.line import MockLine
from hal.mock.power import MockPower
from hal.mock.slot import Slot
from hal.mock.window import MockWindowPair
from hal.registry import TABLE, Registry, Spec, World, find, parse_spec


def mock_world() -> tuple[VirtualKernel, Loop, World]:
    kernel = VirtualKernel(1)
    loop = Loop(kernel.node("card").clock)
    kernel.attach("card", loop)
    return kernel, loop, World(reactor=loop, node=kernel.node("card"))


def test_a_spec_is_taken_apart() -> None:
    spec = parse_spec("serial:/dev/ttyS1?baud=115200")
    assert (spec.scheme, spec.target, dict(spec.options)) == (
        "serial",
        "/dev/ttyS1",
        {"baud": "115200"},
    )
    assert parse_spec("vfio:0000:3b:00.0/bar2").target == "0000:3b:00.0/bar2"
    assert parse_spec("local") == Spec(text="local", scheme="local")
    assert spec.integer("baud", 9600) == 115_200
    assert spec.integer("stop_bits", 1) == 1


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "SCHEME"),
        (":x", "SCHEME"),
        ("Serial:/dev/x", "SCHEME"),
        ("serial:/dev/x?baud", "KEY=VALUE"),
        ("serial:/dev/x?", "KEY=VALUE"),
        ("serial:/dev/x?baud=1&baud=2", "twice"),
        ("serial:/dev/x\n", "printable"),
        ("serial:" + "x" * 600, "512"),
    ],
)
def test_a_malformed_spec_is_refused_with_what_was_wanted(text: str, names: str) -> None:
    with pytest.raises(Refused, match=names):
        parse_spec(text)


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        spec = parse_spec(text)
    except Refused:
        return
    assert spec.text == text
    assert text.startswith(spec.scheme)


@pytest.mark.parametrize(
    ("port", "text", "names"),
    [
        ("byte_stream", "cereal:/dev/x", "serial, mock"),
        ("byte_stream", "serial:/dev/x?bauds=9600", "known: baud"),
        ("window", "shm:cnm0?size=5", "known: none"),
        ("power", "serial:/dev/x", "local, mock"),
    ],
)
def test_an_unknown_scheme_or_option_is_refused_with_the_known_ones(
    port: str, text: str, names: str
) -> None:
    with pytest.raises(Refused, match=names):
        find(port, text)


@pytest.mark.parametrize("text", ["serial:relative", "serial:/dev/null?baud=fast"])
def test_a_serial_spec_needs_an_absolute_path_and_a_number(text: str) -> None:
    _, _, world = mock_world()
    with pytest.raises(Refused, match="want"):
        Registry(world).open_stream(text)


def test_the_mock_stands_in_every_ports_table() -> None:
    assert all("mock" in rows for rows in TABLE.values())


def test_a_mock_line_opens_on_the_side_that_was_asked_for() -> None:
    kernel, _, world = mock_world()
    line = kernel.add_line(MockLine(kernel, "cnm0-mc"))
    registry = Registry(world)
    a, b = registry.open_stream("mock:cnm0-mc"), registry.open_stream("mock:cnm0-mc?side=b")
    a.write(b"hi")
    kernel.run_for(MS)
    assert b.read() == b"hi"
    assert line.a_to_b.bytes_out == 2
    with pytest.raises(Refused, match="one of a, b"):
        registry.open_stream("mock:cnm0-mc?side=c")
    with pytest.raises(Unavailable, match="cnm0-mc"):
        registry.open_stream("mock:cnm9-mc")
    with pytest.raises(Refused, match="there already"):
        kernel.add_line(MockLine(kernel, "cnm0-mc"))


def test_a_mock_window_comes_with_its_doorbell_through_the_mailbox() -> None:
    kernel, loop, world = mock_world()
    kernel.add_window(MockWindowPair(kernel, "cnm0", ab_bytes=4096))
    out: list[Any] = []
    registry = Registry(world)
    for text in ("mock:cnm0", "mock:cnm0?side=b", "mock:other"):
        registry.submit_open_window(text, 0, loop.now_ns() + MS, out.append)
    assert out == []
    kernel.run_for(MS)
    (card, _), (cnm, _), error = out
    card.publish(0, 9)
    assert cnm.acquire(0) == 9
    assert isinstance(error, Unavailable)
    with pytest.raises(Refused, match="there already"):
        kernel.add_window(MockWindowPair(kernel, "cnm0", ab_bytes=4096))


def test_mock_power_opens_over_the_kernels_slots() -> None:
    kernel, _, world = mock_world()
    kernel.add_slot(Slot(kernel, slot=0, cnm_id="cnm0"))
    assert isinstance(Registry(world).open_power("mock"), MockPower)


@pytest.mark.parametrize("text", ["mock:x", "shm:x"])
def test_a_world_without_what_a_backend_needs_says_so(text: str) -> None:
    loop = mock_world()[1]
    registry = Registry(World(reactor=loop))
    with pytest.raises(Unavailable, match="wants"):
        registry.submit_open_window(text, 0, loop.now_ns(), lambda result: None)


def test_all_that_is_opened_passes_the_wrap() -> None:
    kernel, loop, world = mock_world()
    kernel.add_line(MockLine(kernel, "l"))
    kernel.add_window(MockWindowPair(kernel, "w", ab_bytes=4096))
    seen: list[tuple[str, str]] = []

    def wrap(port: str, spec: Spec, opened: Any) -> Any:
        seen.append((port, spec.text))
        return opened

    registry = Registry(world, wrap=wrap)
    registry.open_stream("mock:l")
    registry.open_power("mock")
    out: list[tuple[Any, Any] | HalError] = []
    registry.submit_open_window("mock:w", 0, loop.now_ns() + MS, out.append)
    kernel.run_for(MS)
    assert seen == [("byte_stream", "mock:l"), ("power", "mock"), ("window", "mock:w")]
