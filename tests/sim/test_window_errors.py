"""A window that can't be opened is tried again for ever, and said once for each reason."""

from hal.errors import Absent
from tools.sim.world import World


def test_a_window_that_is_not_there_is_told_once_and_used_when_it_is():
    world = World(seed=5, slots=1)
    module = world.modules["cnm0"]
    ports_of, missing = module.ports, [True]

    def ports(node):
        made = ports_of(node)
        open_window = made.open_window

        def opened(deadline_ns, done):
            if missing:
                node.kernel.after(1, lambda: done(Absent("the slot is empty")))
            else:
                open_window(deadline_ns, done)

        made.open_window = opened
        return made

    module.ports = ports
    world.start_daemon()
    world.run(20)
    assert [code for code in world.codes(cnm="cnm0") if code == "window.down"] == ["window.down"]
    missing.clear()
    world.wait_leased("cnm0")
