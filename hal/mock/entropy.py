"""The `Entropy` port: repeatable, and never the same bytes twice on one node."""

from hal.mock.node import Node


class MockEntropy:
    """Random bytes drawn from the kernel's seed and the node's name. Not for keys."""

    def __init__(self, node: Node) -> None:
        """Each start of a program goes on in its node's stream, so that boot ids differ."""
        self._rng = node.kernel.rng(f"{node.name}/entropy")

    def random_bytes(self, length: int) -> bytes:
        """`length` bytes; the same for the same seed and history."""
        return self._rng.randbytes(length)
