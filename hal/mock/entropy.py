"""The `Entropy` port: repeatable per node and incarnation, so that each boot gets its own ids."""

from hal.mock.node import Node


class MockEntropy:
    """Random bytes drawn from the kernel's seed. Not for keys."""

    def __init__(self, node: Node) -> None:
        """One per start of a program: a second one on the same node draws other bytes."""
        made = f"{node.name}/entropy"
        count = node.kernel.rng(made).getrandbits(64)
        self._rng = node.kernel.rng(f"{made}/{count:016x}")

    def random_bytes(self, length: int) -> bytes:
        """`length` bytes; the same for the same seed and history."""
        return self._rng.randbytes(length)
