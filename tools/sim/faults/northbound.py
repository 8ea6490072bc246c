"""N1 to N9: what callers do to the daemon's control socket.

The socket, its connections and the dispatcher are the firmware's own, over `hal.mock.unix_server`;
that the kernel tells the true uid of a peer is shown on real processes only.
"""

import json
from collections.abc import Callable
from typing import Any, Final

from firmware.control_connection import HALF_REQUEST_NS, MAX_LINE_BYTES
from firmware.control_socket import MAX_CONNECTIONS, ControlSocket
from firmware.rpc import MAX_DEPTH
from hal.errors import HalError
from hal.mock.line import MockStream
from hal.service_ports import PeerCredentials
from tools.sim.faults.evidence import events_since, works
from tools.sim.faults.types import MS, SECOND, Fault, Injection, Site, injection, span_ns
from tools.sim.world import DAEMON, World

CALLERS: Final = "callers"  # the node of all who call; it has no loop
ADMIN_UID: Final = 0
NOBODY_UID: Final = 65_534
PUMP_NS: Final = MS
PUMPS_MOST: Final = 20_000
BIG_BYTES: Final = 10 << 20
IDLE: Final = 1_000
CALLS: Final = 32  # of each of two callers who disagree
JUNK: Final = (
    b"{",
    b'{"jsonrpc":"2.0","id":1,"method":"status"',
    b"\x00\xff\xfe binary",
    b"[1,2,3]",
    b'{"jsonrpc":"2.0","id":1,"method":"status","params":{"a":NaN}}',
    b'{"jsonrpc":"2.0","id":1,"id":2,"method":"status"}',
    b"'single'",
)


class Client:
    """One connection to the daemon; None of its calls wait."""

    def __init__(self, world: World, *, uid: int = ADMIN_UID) -> None:
        self._kernel = world.kernel
        self._stream: MockStream | None = None
        self._unsent = b""
        self._got = b""
        self._pumps = PUMPS_MOST
        try:
            peer = PeerCredentials(pid=1, uid=uid, gid=uid)
            self._stream = world.socket.connect(world.kernel.node(CALLERS), peer)
        except HalError:
            pass  # nobody listens, or too many wait: then it has called in vain

    @property
    def connected(self) -> bool:
        return self._stream is not None

    def send(self, data: bytes) -> None:
        """As fast as the daemon takes it."""
        self._unsent += data
        self._pump()

    def call(self, request_id: object, method: str, **params: object) -> None:
        """Send a request."""
        request = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
        self.send(json.dumps(request).encode() + b"\n")

    def answers(self) -> list[dict[str, Any]]:
        """All that have come so far."""
        self._read()
        return [json.loads(line) for line in self._got.split(b"\n")[:-1]]

    def errors(self) -> list[str]:
        """The words of the refusals among them."""
        return [answer["error"]["data"]["code"] for answer in self.answers() if "error" in answer]

    def close(self) -> None:
        """What came by then can still be read."""
        self._read()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _read(self) -> None:
        try:
            while self._stream is not None and (data := self._stream.read()):
                self._got += data
        except HalError:  # the daemon has hung up
            stream, self._stream = self._stream, None
            if stream is not None:
                stream.close()

    def _pump(self) -> None:
        if self._stream is None or not self._unsent or self._pumps <= 0:
            return
        self._pumps -= 1
        try:
            while self._unsent and (taken := self._stream.write(self._unsent)):
                self._unsent = self._unsent[taken:]
        except HalError:
            self.close()
            return
        if self._unsent:
            self._kernel.after(PUMP_NS, self._pump)


def _control(site: Site) -> ControlSocket | None:
    world = site.world
    card = world.card_or_none
    return world.control if card is not None and card.ready and works(world, DAEMON) else None


def _talk(
    site: Site,
    fault_id: str,
    text: str,
    talk: Callable[[Client], None],
    seen: Callable[[Client], bool],
    *,
    uid: int = ADMIN_UID,
) -> Injection | None:
    """One caller says something; what it is told is the evidence."""
    if _control(site) is None:
        return None
    client = Client(site.world, uid=uid)
    talk(client)
    return injection(
        site,
        fault_id,
        text,
        lambda: seen(client),
        heal=client.close,
        lasts_ns=5 * SECOND,
    )


def _junk(site: Site) -> Injection | None:
    lines = [site.rng.choice(JUNK) for _ in range(site.rng.randint(1, 8))]
    lines.append(site.rng.randbytes(site.rng.randint(1, 200)).replace(b"\n", b"?"))
    return _talk(
        site,
        "N1",
        f"{len(lines)} lines that are no requests",
        lambda client: client.send(b"\n".join(lines) + b"\n"),
        lambda client: any(
            word in ("parse", "nesting", "batch_unsupported", "not_a_request")
            for word in client.errors()
        ),
    )


def _big(site: Site) -> Injection | None:
    control = _control(site)
    if control is None:
        return None
    counters, before = control.counters, control.counters["too_large"]
    start = b'{"jsonrpc":"2.0","id":1,"method":"' + b"x" * (MAX_LINE_BYTES + 1)
    return _talk(
        site,
        "N2",
        f"a request of {BIG_BYTES >> 20} MiB",
        lambda client: client.send(start + bytes(BIG_BYTES - len(start))),
        lambda _client: counters["too_large"] > before,
    )


def _deep(site: Site) -> Injection | None:
    depth = site.rng.choice((MAX_DEPTH + 1, 1_000, 30_000))
    line = b'{"jsonrpc":"2.0","id":1,"method":"status","params":{"a":%b%b}}\n' % (
        b"[" * depth,
        b"]" * depth,
    )
    return _talk(
        site,
        "N3",
        f"a request {depth} levels deep",
        lambda client: client.send(line),
        lambda client: "nesting" in client.errors(),
    )


def _slow(site: Site) -> Injection | None:
    control = _control(site)
    if control is None:
        return None
    counters, before = control.counters, control.counters["half_requests"]
    client = Client(site.world)
    gap_ns = span_ns(site, 0.1, 3.0)

    def drip() -> None:
        if client.connected:
            client.send(b" ")
            site.world.kernel.after(gap_ns, drip)

    client.send(b'{"jsonrpc"')
    drip()
    return injection(
        site,
        "N4",
        f"a request that comes a byte each {gap_ns // MS} ms",
        lambda: counters["half_requests"] > before,
        heal=client.close,
        lasts_ns=HALF_REQUEST_NS + 2 * SECOND,
    )


def _idle(site: Site) -> Injection | None:
    """They connect as fast as they are accepted; the first ones stay and say nothing."""
    control = _control(site)
    if control is None:
        return None
    world, counters = site.world, control.counters
    before = counters["turned_away"]
    clients: list[Client] = []
    on = True

    def more() -> None:
        while on and len(clients) < IDLE:
            client = Client(world)
            if not client.connected:
                world.kernel.after(PUMP_NS, more)
                return
            clients.append(client)

    def heal() -> None:
        nonlocal on
        on = False
        for client in clients:
            client.close()

    more()
    return injection(
        site,
        "N5",
        f"{IDLE} connections that say nothing",
        lambda: counters["turned_away"] >= before + IDLE - MAX_CONNECTIONS,
        heal=heal,
        lasts_ns=span_ns(site, 0.5, 20.0),
    )


def _again(site: Site) -> Injection | None:
    """A caller that has lost the answer sends the same request again, by its id: a submit of what
    is there already changes nothing, and each is answered once."""
    control, request_id = _control(site), f"retry-{site.rng.getrandbits(32):08x}"
    if control is None:
        return None
    known = sorted(site.world.card.decisions.workloads.items())
    method: str = "status"
    params: dict[str, object] = {}
    if known:
        _, record = site.rng.choice(known)
        method, params = "workload.submit", {"workload": record.workload.to_json()}

    def talk(client: Client) -> None:
        client.call(request_id, method, **params)
        client.call(request_id, method, **params)

    def seen(client: Client) -> bool:
        told = [answer for answer in client.answers() if answer["id"] == request_id]
        return len(told) == 2 and ("error" in told[1]) == (method == "workload.submit")

    return _talk(site, "N6", f"{method} is sent twice with one id", talk, seen)


def _unknown(site: Site) -> Injection | None:
    wanted: dict[str, tuple[dict[str, object], str]] = {
        "cnm.show": ({"id": "cnm999"}, "unknown_cnm"),
        "cnm.power": ({"slot": 1000, "action": "off"}, "unknown_slot"),
        "workload.remove": ({"name": "nobody"}, "unknown_workload"),
        "workload.ps": ({"workload": "nobody"}, "unknown_workload"),
        "instance.migrate": ({"instance": "no/such/0"}, "unknown_instance"),
        "instance.logs": ({"instance": "no/such/0"}, "unknown_instance"),
        "no.such.method": ({}, "unknown_method"),
    }

    def talk(client: Client) -> None:
        for method, (params, _word) in wanted.items():
            client.call(method, method, **params)

    return _talk(
        site,
        "N7",
        "requests for what is not there",
        talk,
        lambda client: {word for _, word in wanted.values()} <= set(client.errors()),
    )


def _conflict(site: Site) -> Injection | None:
    """One wants a module drained, the other not, at the same time and again and again; what the
    last one said, which is what was true before, holds."""
    world = site.world
    if _control(site) is None:
        return None
    cnm = site.rng.choice(list(world.card.inventory))
    later, was = events_since(world), cnm.draining
    one, other = Client(world), Client(world)
    methods = ("cnm.undrain", "cnm.drain")
    for number in range(CALLS):
        one.call(number, methods[not was], id=cnm.id)
        other.call(number, methods[was], id=cnm.id)

    def heal() -> None:
        one.close()
        other.close()

    def seen() -> bool:
        done = len(one.answers()) == len(other.answers()) == CALLS
        said_both = later("cnm.draining", cnm=cnm.id) and later("cnm.undrained", cnm=cnm.id)
        return done and bool(said_both)

    return injection(
        site,
        "N8",
        f"{cnm.id}: drain and undrain, {CALLS} times at once",
        seen,
        cnm=cnm.id,
        heal=heal,
        lasts_ns=5 * SECOND,
    )


def _nobody(site: Site) -> Injection | None:
    control = _control(site)
    if control is None:
        return None
    name = site.rng.choice(list(site.world.modules))
    workloads = sorted(site.world.card.decisions.workloads) or ["shop"]

    def talk(client: Client) -> None:
        client.call(1, "cnm.power", slot=0, action="off")
        client.call(2, "cnm.drain", id=name)
        client.call(3, "workload.remove", name=workloads[0])
        client.call(4, "shutdown")

    return _talk(
        site,
        "N9",
        f"uid {NOBODY_UID} wants what it may not",
        talk,
        lambda client: client.errors() == ["unauthorised"] * 4,
        uid=NOBODY_UID,
    )


NORTHBOUND_FAULTS: Final = (
    Fault(id="N1", text="a request that is no JSON", inject=_junk),
    Fault(id="N2", text="a request of 10 MB", inject=_big, weight=0.3),
    Fault(id="N3", text="a request that is nested too deep", inject=_deep),
    Fault(id="N4", text="a request that comes byte by byte and does not end", inject=_slow),
    Fault(id="N5", text="1,000 idle connections", inject=_idle, weight=0.1),
    Fault(id="N6", text="a request that is sent again with its id", inject=_again),
    Fault(id="N7", text="a request for something that is not there", inject=_unknown),
    Fault(id="N8", text="two callers want different things at once", inject=_conflict),
    Fault(id="N9", text="a peer that may not do it", inject=_nobody),
)
