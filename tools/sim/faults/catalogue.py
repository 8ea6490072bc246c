"""The whole catalogue in its order, put together from the modules that hold its classes."""

from typing import Final

from tools.sim.faults.buses import FABRIC_FAULTS
from tools.sim.faults.clocks import CLOCK_FAULTS
from tools.sim.faults.cnms import CNM_FAULTS
from tools.sim.faults.daemon import DAEMON_FAULTS
from tools.sim.faults.environment import ENVIRONMENT_FAULTS
from tools.sim.faults.links import LINK_FAULTS
from tools.sim.faults.malicious import MALICIOUS_FAULTS
from tools.sim.faults.mctp import MCTP_FAULTS
from tools.sim.faults.northbound import NORTHBOUND_FAULTS
from tools.sim.faults.smbus import SMBUS_FAULTS
from tools.sim.faults.storage import STORAGE_FAULTS

FAULTS: Final = {
    fault.id: fault
    for faults in (
        LINK_FAULTS,
        MCTP_FAULTS,
        SMBUS_FAULTS,
        FABRIC_FAULTS,
        CNM_FAULTS,
        STORAGE_FAULTS,
        CLOCK_FAULTS,
        ENVIRONMENT_FAULTS,
        DAEMON_FAULTS,
        NORTHBOUND_FAULTS,
        MALICIOUS_FAULTS,
    )
    for fault in faults
}
