"""Temperature sensor TMP464: a local one and four remote diodes.

Ref: TI TMP464 data sheet SBOS835, 7.6 (registers), 7.3.1 (data format): 13 bits of 0.0625 degrees,
left-justified by three bits; words with the most significant byte first.
"""

from typing import Final

from firmware.sensors.steps import At, Readings, Steps, WrongPart

REG_LOCAL_TEMPERATURE: Final = 0x00  # 1 to 4: the remote ones
REG_REMOTE_CHANNEL_OPEN: Final = 0x23  # bit 7 + channel
REG_CONFIGURATION: Final = 0x30
REG_MANUFACTURER_ID: Final = 0xFE
REG_DEVICE_ID: Final = 0xFF
MANUFACTURER_ID: Final = 0x5449  # "TI"
DEVICE_ID: Final = 0x1468
SHUTDOWN: Final = 1 << 5  # SD, of the configuration: 7.6.6
CHANNELS: Final = 5


class Tmp464:
    """`channels` to read: 0 is local, 1 to 4 are remote."""

    part = "tmp464"

    def __init__(self, at: At, *, channels: tuple[int, ...] = (0, 1, 2, 3, 4)) -> None:
        self.at = at
        self.channels = channels

    def identify(self) -> Steps[str]:
        maker = yield from self.at.read_be(REG_MANUFACTURER_ID)
        device = yield from self.at.read_be(REG_DEVICE_ID)
        if (maker, device) != (MANUFACTURER_ID, DEVICE_ID):
            want = f"{MANUFACTURER_ID:#06x} and {DEVICE_ID:#06x}"
            raise WrongPart(f"{self.at}: ids {maker:#06x} and {device:#06x}, want {want}")
        return "TMP464"

    def configure(self) -> Steps[None]:
        """Wake it, if it was shut down."""
        now = yield from self.at.read_be(REG_CONFIGURATION)
        if now & SHUTDOWN:
            yield from self.at.write_be(REG_CONFIGURATION, now & ~SHUTDOWN)

    def read(self) -> Steps[Readings]:
        """`temp_mdegc` is the local one, `remote1_mdegc`... the diodes; None for an open diode."""
        opens = 0
        if any(self.channels):
            opens = yield from self.at.read_be(REG_REMOTE_CHANNEL_OPEN)
        found: dict[str, int | None] = {}
        for channel in self.channels:
            word = yield from self.at.read_signed_be(REG_LOCAL_TEMPERATURE + channel)
            name = f"remote{channel}_mdegc" if channel else "temp_mdegc"
            is_open = channel > 0 and opens >> 7 + channel & 1
            found[name] = None if is_open else (word >> 3) * 625 // 10
        return found
