"""A lease proof by brute force: DESIGN section 4 over random drifts, delays, losses and faults.

The state machines of both ends are the real ones: `CardLease`, `Fencing`, `Discovery`, `Decisions`,
`Reconciler` and `Deployer` on the card, `CardBinding`, `LeaseGuard`, `InstanceTable`, `Tombstones`,
`Runner` and init's lease timer on the modules. Only what lies between and below them is a model:
clocks, messages, disk, power and processes, each event a call on one heap, so that a run takes well
under a millisecond. What is judged is true time: two generations of one component must never live
at the same moment. `without` holds, rule by rule, what happens when the rule is left out.
"""

from tools.sim.leases.run import Proof, prove, run_once
from tools.sim.leases.without import WITHOUT

__all__ = ["WITHOUT", "Proof", "prove", "run_once"]
