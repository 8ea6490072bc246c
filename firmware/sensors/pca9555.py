"""Port expander PCA9555: sixteen lines.

Ref: NXP PCA9555 data sheet, 6.2: pairs of registers, port 0 then port 1. A line's bit is 0 to 15.
"""

from typing import Final

from firmware.sensors.steps import At, Readings, Steps

REG_INPUT_PORT: Final = 0x00  # 6.2.2
REG_OUTPUT_PORT: Final = 0x02  # 6.2.3
REG_POLARITY_INVERSION: Final = 0x04  # 6.2.4
REG_CONFIGURATION: Final = 0x06  # 6.2.5; a bit that is 1 is an input
LINES: Final = 16


class Pca9555:
    """One expander. Reading changes nothing: its latches outlive us."""

    part = "pca9555"

    def __init__(self, at: At) -> None:
        self.at = at

    def identify(self) -> Steps[str]:
        """No identification register: it answers."""
        yield from self.at.read_byte(REG_CONFIGURATION)
        return "PCA9555"

    def configure(self) -> Steps[None]:
        """Nothing: a starting daemon reads latches and never alters them."""
        yield from ()

    def read(self) -> Steps[Readings]:
        """What the pins are, what is latched, and which are inputs; sixteen bits each."""
        return {
            "inputs": (yield from self._pair(REG_INPUT_PORT)),
            "outputs": (yield from self._pair(REG_OUTPUT_PORT)),
            "directions": (yield from self._pair(REG_CONFIGURATION)),
        }

    def line(self, bit: int) -> Steps[int]:
        """0 or 1, as the pin is."""
        return (yield from self.at.read_byte(REG_INPUT_PORT + bit // 8)) >> bit % 8 & 1

    def set_line(self, bit: int, value: int) -> Steps[None]:
        """Drive it. The latch is set before the direction, so that no other level shows."""
        port, mask = bit // 8, 1 << bit % 8
        latch = yield from self.at.read_byte(REG_OUTPUT_PORT + port)
        wanted = latch | mask if value else latch & ~mask
        if wanted != latch:
            yield from self.at.write_byte(REG_OUTPUT_PORT + port, wanted)
        direction = yield from self.at.read_byte(REG_CONFIGURATION + port)
        if direction & mask:
            yield from self.at.write_byte(REG_CONFIGURATION + port, direction & ~mask)

    def _pair(self, register: int) -> Steps[int]:
        low = yield from self.at.read_byte(register)
        high = yield from self.at.read_byte(register + 1)
        return high << 8 | low
