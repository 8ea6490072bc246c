"""Spec strings: SCHEME[:TARGET[?KEY=VALUE[&KEY=VALUE...]]], which the registry opens."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from hal.errors import Refused

SPEC_LIMIT: Final = 512  # characters
SCHEME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
OPTION: Final = re.compile(r"([a-z][a-z0-9_]{0,31})=([^&?=]{0,128})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A spec string, taken apart."""

    text: str
    scheme: str
    target: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    def integer(self, key: str, default: int) -> int:
        """An option as a number. Raises Refused for anything else."""
        value = self.options.get(key)
        if value is None:
            return default
        if not re.fullmatch(r"[0-9]{1,9}", value):
            raise Refused(f"{self.text!r}: {key}={value!r}; want a decimal number")
        return int(value)

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        """An option that is one of a few words; the first is the default. Raises Refused."""
        value = self.options.get(key, choices[0])
        if value not in choices:
            raise Refused(f"{self.text!r}: {key}={value!r}; want one of {', '.join(choices)}")
        return value


def parse_spec(text: str) -> Spec:
    """Take a spec string apart. Raises Refused that names the part which is wrong."""
    if len(text) > SPEC_LIMIT:
        raise Refused(f"spec of {len(text)} characters, at most {SPEC_LIMIT}: {text[:40]!r}...")
    if not text.isprintable():
        raise Refused(f"spec {text!r}: want printable characters only")
    scheme, _, rest = text.partition(":")
    if not SCHEME.fullmatch(scheme):
        raise Refused(f"spec {text!r}: want SCHEME:TARGET?KEY=VALUE, scheme of a-z, 0-9, - and _")
    target, mark, tail = rest.partition("?")
    options: dict[str, str] = {}
    for part in tail.split("&") if mark else ():
        found = OPTION.fullmatch(part)
        if found is None:
            raise Refused(f"spec {text!r}: option {part!r}; want KEY=VALUE")
        if found[1] in options:
            raise Refused(f"spec {text!r}: option {found[1]!r} is given twice")
        options[found[1]] = found[2]
    return Spec(text=text, scheme=scheme, target=target, options=options)
