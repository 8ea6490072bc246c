"""Which payload an opcode has, in a request and in an answer.

Absent: no payload, or one that is plain bytes (a log, a label area) or needs its request to be
read (5200h's answer: `protocol.cxl.switch.VcsInfos`).
"""

from collections.abc import Mapping
from typing import Final

from protocol.cxl.codes import Opcode
from protocol.cxl.events import ClearEventsRequest, EventRecords, GetEventsRequest, InterruptPolicy
from protocol.cxl.generic import BackgroundStatus, FirmwareInfo, Identify, ResponseLimit, Timestamp
from protocol.cxl.layout import Layout
from protocol.cxl.logs import GetLogRequest, SupportedLogs
from protocol.cxl.memory import (
    AlertConfiguration,
    GetLsaRequest,
    HealthInfo,
    IdentifyMemoryDevice,
    PartitionInfo,
    SetLsaRequest,
    SetPartitionRequest,
    ShutdownState,
)
from protocol.cxl.switch import (
    BindRequest,
    GetPortStateRequest,
    GetVcsInfoRequest,
    IdentifySwitch,
    PortControlRequest,
    PortStates,
    TunnelRequest,
    TunnelResponse,
    UnbindRequest,
)

REQUESTS: Final[Mapping[int, type[Layout]]] = {
    Opcode.SET_RESPONSE_LIMIT: ResponseLimit,
    Opcode.GET_EVENT_RECORDS: GetEventsRequest,
    Opcode.CLEAR_EVENT_RECORDS: ClearEventsRequest,
    Opcode.SET_EVENT_INTERRUPT_POLICY: InterruptPolicy,
    Opcode.SET_TIMESTAMP: Timestamp,
    Opcode.GET_LOG: GetLogRequest,
    Opcode.SET_PARTITION_INFO: SetPartitionRequest,
    Opcode.GET_LSA: GetLsaRequest,
    Opcode.SET_LSA: SetLsaRequest,
    Opcode.SET_SHUTDOWN_STATE: ShutdownState,
    Opcode.GET_PHYSICAL_PORT_STATE: GetPortStateRequest,
    Opcode.PHYSICAL_PORT_CONTROL: PortControlRequest,
    Opcode.GET_VCS_INFO: GetVcsInfoRequest,
    Opcode.BIND_VPPB: BindRequest,
    Opcode.UNBIND_VPPB: UnbindRequest,
    Opcode.TUNNEL: TunnelRequest,
}

RESPONSES: Final[Mapping[int, type[Layout]]] = {
    Opcode.IDENTIFY: Identify,
    Opcode.BACKGROUND_STATUS: BackgroundStatus,
    Opcode.GET_RESPONSE_LIMIT: ResponseLimit,
    Opcode.SET_RESPONSE_LIMIT: ResponseLimit,
    Opcode.GET_EVENT_RECORDS: EventRecords,
    Opcode.GET_EVENT_INTERRUPT_POLICY: InterruptPolicy,
    Opcode.GET_FW_INFO: FirmwareInfo,
    Opcode.GET_TIMESTAMP: Timestamp,
    Opcode.GET_SUPPORTED_LOGS: SupportedLogs,
    Opcode.IDENTIFY_MEMORY_DEVICE: IdentifyMemoryDevice,
    Opcode.GET_PARTITION_INFO: PartitionInfo,
    Opcode.GET_HEALTH_INFO: HealthInfo,
    Opcode.GET_ALERT_CONFIGURATION: AlertConfiguration,
    Opcode.GET_SHUTDOWN_STATE: ShutdownState,
    Opcode.IDENTIFY_SWITCH: IdentifySwitch,
    Opcode.GET_PHYSICAL_PORT_STATE: PortStates,
    Opcode.TUNNEL: TunnelResponse,
}
