"""Variables, sizes, durations and env files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.compose.envfile import EnvFileError, parse_env_file
from tools.compose.interpolate import TemplateError, substitute
from tools.compose.units import UnitError, parse_cpu_milli, parse_duration_ms, parse_size

ENV = {"X": "x", "EMPTY": "", "N": "${X}"}


def fill(text):
    missed = []
    return substitute(text, ENV, missed.append), missed


@pytest.mark.parametrize(
    ("text", "result", "missed"),
    [
        ("plain", "plain", []),
        ("$X ${X} $$X $${X}", "x x $X ${X}", []),
        ("$NONE", "", ["NONE"]),
        ("${EMPTY:-d} ${EMPTY-d} ${NONE-d} ${X:-d}", "d  d x", []),
        ("${X:+a}${EMPTY:+a}${EMPTY+b}${NONE+c}", "ab", []),
        ("${X:?why}${EMPTY?why}", "x", []),
        ("${NONE:-${EMPTY:-${X}}}", "x", []),
        ("${NONE:-$NONE2}", "", ["NONE2"]),
        ("${X:-$NONE}", "x", []),
        ("${NONE:-a}b}", "ab}", []),
        ("${N}", "${X}", []),  # a value is not read again
        ("${NONE:--}", "-", []),
        ("${NONE:-a:b?c}", "a:b?c", []),
    ],
)
def test_variables(text, result, missed):
    assert fill(text) == (result, missed)


@pytest.mark.parametrize(
    "text", ["$", "a$ b", "$1", "${", "${X", "${}", "${1}", "${X!}", "${NONE:?}", "${EMPTY:?say}"]
)
def test_bad_templates_are_refused(text):
    with pytest.raises(TemplateError):
        fill(text)


def test_a_required_variable_says_its_message():
    with pytest.raises(TemplateError, match="EMPTY is required: set it"):
        fill("${EMPTY:?set it}")


def test_variables_do_not_nest_for_ever():
    with pytest.raises(TemplateError, match="deeper"):
        fill("${A:-" * 50 + "}" * 50)


@given(st.text(alphabet="${}:-?+XA ", max_size=40))
def test_any_text_is_filled_or_refused(text):
    try:
        fill(text)
    except TemplateError:
        return


@given(st.text(max_size=40))
def test_an_escaped_text_is_itself(text):
    assert fill(text.replace("$", "$$")) == (text, [])


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1b", 1), ("512", 512), ("1k", 1024), ("64 MiB", 64 << 20), ("1.5g", 3 << 29)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "1x", "-1", "1e3", "1 m b", "9999999t", "0x10", "1,5g"])
def test_bad_sizes_are_refused(text):
    with pytest.raises(UnitError):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "ms"),
    [("0", 0), ("10s", 10_000), ("1m30s", 90_000), ("1.5h", 5_400_000), ("1us", 1)],
)
def test_durations(text, ms):
    assert parse_duration_ms(text) == ms


@pytest.mark.parametrize("text", ["", "10", "s", "1s2", "-1s", "1 s", "99999999h"])
def test_bad_durations_are_refused(text):
    with pytest.raises(UnitError):
        parse_duration_ms(text)


@pytest.mark.parametrize(
    ("text", "milli"), [("0.5", 500), ("2", 2000), ("0.0001", 1), ("0", 0), ("1e-999999", 1)]
)
def test_processors(text, milli):
    assert parse_cpu_milli(text) == milli


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "-0.5", "1e9", "1024.0001", "1e999999"])
def test_bad_processors_are_refused(text):
    with pytest.raises(UnitError):
        parse_cpu_milli(text)


@given(st.text(max_size=60))
def test_any_env_file_is_read_or_refused(text):
    try:
        parse_env_file(text, ENV)
    except EnvFileError as exc:
        error = exc
        assert error.line >= 1


def test_an_env_file_sees_its_own_earlier_lines_and_outside_wins():
    assert parse_env_file("A=1\nX=mine\nB=${A}${X}", ENV) == {"A": "1", "X": "mine", "B": "1x"}
