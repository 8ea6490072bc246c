"""APF control protocol, version 1, byte by byte. protocol/SPEC.md.

Every line was written from the specification by hand, not by the encoder. NEVER EDIT A LINE: what
is here was sent. A change of version 1 is a mistake; a new version gets a file of its own. Only
append: a body, or a case of a body, that has no line yet.
"""

import pytest

from protocol.apf import (
    AGENT_AGE_NONE,
    BODIES,
    LAYOUT_HASH,
    AbortReply,
    AbortRequest,
    Accelerator,
    Body,
    BootState,
    CancelReply,
    CancelRequest,
    CapabilitiesReply,
    CapabilitiesRequest,
    ChunkMapReply,
    ChunkMapRequest,
    CommitReply,
    CommitRequest,
    Ctx,
    DeployReply,
    DeployRequest,
    ExitReason,
    FlushState,
    Grant,
    HaveReply,
    HaveRequest,
    Health,
    Heartbeat,
    HelloReply,
    HelloRequest,
    InitState,
    InstanceState,
    InstanceStatus,
    InstanceTelemetry,
    InstanceUsage,
    Kind,
    LogReadReply,
    LogReadRequest,
    OfferReply,
    OfferRequest,
    OfferState,
    PrepareReply,
    PrepareRequest,
    PullReply,
    PullRequest,
    Refusal,
    RefusalReason,
    RemoveReply,
    RemoveRequest,
    Role,
    Scope,
    StartReply,
    StartRequest,
    StatusChanged,
    StatusReply,
    StatusRequest,
    StopReply,
    StopRequest,
    Telemetry,
    VerifyReply,
    VerifyRequest,
    VerifyState,
    VolumeFlushReply,
    VolumeFlushRequest,
    VolumeStateReply,
    VolumeStateRequest,
    decode,
    encode,
)

CARD = "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf"
BOOT = "b0b1b2b3b4b5b6b7b8b9babbbcbdbebf"
CNM = "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"
DIG1 = "d0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6e7e8e9eaebecedeeef"
DIG2 = "101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f"
NONE = "00000000000000000000000000000000"
card, boot, cnm = bytes.fromhex(CARD), bytes.fromhex(BOOT), bytes.fromhex(CNM)
dig1, dig2 = bytes.fromhex(DIG1), bytes.fromhex(DIG2)

# Ctx: card_uuid, epoch u64 = 0x1122334455667788, boot_id
CTX = f"{CARD} 8877665544332211 {BOOT}"
ctx = Ctx(card_uuid=card, epoch=0x1122334455667788, boot_id=boot)
# instance str8 "web/api/0" (9 bytes), generation u64 = 258
INST = "09 7765622f6170692f30 0201000000000000"
inst = {"instance": "web/api/0", "generation": 258}

# header: 7e, vendor 4150 big-endian, version 01, flags, opcode LE, message id LE, status
GOLDEN: list[tuple[str, Kind, Body, str]] = [
    (
        "hello request",
        Kind.REQUEST,
        HelloRequest(
            card_uuid=card,
            epoch=5,
            version_min=1,
            version_current=2,
            layout_hash=bytes(range(8)),
            software="0.1.0",
        ),
        f"7e 4150 01 80 0101 01020304 00 {CARD} 0500000000000000 01 02 0001020304050607"
        "05 302e312e30",
    ),
    (
        "hello reply",
        Kind.REPLY,
        HelloReply(
            cnm_uuid=cnm,
            boot_id=boot,
            bound_card_uuid=bytes(16),
            version_min=1,
            version_current=1,
            layout_hash=bytes(range(8)),
            role=Role.BOTH,
            boot_state=BootState.READY,
            software="",
        ),
        f"7e 4150 01 00 0101 01020304 00 {CNM} {BOOT} {NONE} 01 01 0001020304050607 03 03 00",
    ),
    (
        "capabilities request",
        Kind.REQUEST,
        CapabilitiesRequest(),
        "7e 4150 01 80 0201 01020304 00",
    ),
    (
        "capabilities reply",
        Kind.REPLY,
        CapabilitiesReply(
            arch="arm64",
            cores_milli=8000,
            memory_bytes=1 << 33,
            nvme_bytes=1 << 40,
            link_mbit=25000,
            window_tx_bytes=0x00800000,
            window_rx_bytes=0x00400000,
            accelerators=(Accelerator(kind="gpu", model="T4", count=2, scope=Scope.FABRIC),),
            runtimes=("oci", "process"),
            labels=(("zone", "a"), ("x", "")),
        ),
        "7e 4150 01 00 0201 01020304 00 05 61726d3634 401f0000 0000000002000000"
        "0000000000010000 a8610000 00008000 00004000"
        "01 03 677075 02 5434 0200 01"
        "02 03 6f6369 07 70726f63657373"
        "02 04 7a6f6e65 01 61 01 78 00",
    ),
    (
        "heartbeat",
        Kind.NOTICE,
        Heartbeat(
            boot_id=boot,
            seq=0x01020304,
            init_state=InitState.READY,
            bound_epoch=5,
            lease_left_ms=4900,
            agent_age_ms=AGENT_AGE_NONE,
            status_seq=7,
            instances=3,
        ),
        f"7e 4150 01 c0 0102 01020304 00 {BOOT} 04030201 01 0500000000000000 24130000 ffffffff"
        "07000000 0300",
    ),
    (
        "grant",
        Kind.NOTICE,
        Grant(card_uuid=card, epoch=5, boot_id=boot, seq=0x01020304, lease_ms=5000),
        f"7e 4150 01 c0 0202 01020304 00 {CARD} 0500000000000000 {BOOT} 04030201 88130000",
    ),
    (
        "telemetry, all but nvme read",
        Kind.NOTICE,
        Telemetry(
            boot_id=boot,
            seq=9,
            present=0b1111011,
            cpu_milli=1500,
            memory_bytes=1 << 32,
            nvme_bytes=0,
            link_tx_bytes=10,
            link_rx_bytes=11,
            temp_mdegc=-40_000,
            power_mw=65_000,
        ),
        f"7e 4150 01 c0 0103 01020304 00 {BOOT} 09000000 7b00 dc050000 0000000001000000"
        "0000000000000000 0a00000000000000 0b00000000000000 c063ffff e8fd0000",
    ),
    (
        "instance telemetry",
        Kind.NOTICE,
        InstanceTelemetry(
            boot_id=boot,
            seq=9,
            entries=(
                InstanceUsage(
                    **inst,
                    present=0b10111,
                    cpu_us=1_000_000,
                    memory_bytes=2,
                    memory_peak_bytes=3,
                    io_bytes=0,
                    pids=5,
                ),
                InstanceUsage(instance="z", generation=1, present=0),
            ),
        ),
        f"7e 4150 01 c0 0203 01020304 00 {BOOT} 09000000 02"
        f"{INST} 17 40420f0000000000 0200000000000000 0300000000000000 0000000000000000 05000000"
        "01 7a 0100000000000000 00 0000000000000000 0000000000000000 0000000000000000"
        "0000000000000000 00000000",
    ),
    (
        "deploy request",
        Kind.REQUEST,
        DeployRequest(ctx=ctx, **inst, spec_digest=dig1),
        f"7e 4150 01 80 0104 01020304 00 {CTX} {INST} {DIG1}",
    ),
    (
        "deploy reply",
        Kind.REPLY,
        DeployReply(state=InstanceState.STAGING, status_seq=1, missing=(dig1, dig2)),
        f"7e 4150 01 00 0104 01020304 00 01 01000000 02 {DIG1} {DIG2}",
    ),
    (
        "start request",
        Kind.REQUEST,
        StartRequest(ctx=ctx, **inst),
        f"7e 4150 01 80 0204 01020304 00 {CTX} {INST}",
    ),
    (
        "start reply",
        Kind.REPLY,
        StartReply(state=InstanceState.STARTING, status_seq=2),
        "7e 4150 01 00 0204 01020304 00 03 02000000",
    ),
    (
        "stop request",
        Kind.REQUEST,
        StopRequest(ctx=ctx, **inst, grace_ms=10_000),
        f"7e 4150 01 80 0304 01020304 00 {CTX} {INST} 10270000",
    ),
    (
        "stop reply",
        Kind.REPLY,
        StopReply(state=InstanceState.STOPPING, status_seq=3),
        "7e 4150 01 00 0304 01020304 00 05 03000000",
    ),
    (
        "status request",
        Kind.REQUEST,
        StatusRequest(cursor=16),
        "7e 4150 01 80 0404 01020304 00 1000",
    ),
    (
        "status reply",
        Kind.REPLY,
        StatusReply(
            boot_id=boot,
            status_seq=4,
            total=2,
            next_cursor=0xFFFF,
            entries=(
                InstanceStatus(
                    **inst,
                    state=InstanceState.RUNNING,
                    pid=4242,
                    start_ticks=0x0102030405,
                    cgroup="/apf/x",
                    health=Health.HEALTHY,
                ),
                InstanceStatus(
                    instance="b",
                    generation=1,
                    state=InstanceState.EXITED,
                    exit_reason=ExitReason.SIGNALED,
                    exit_status=-9,
                    text="gone",
                ),
            ),
        ),
        f"7e 4150 01 00 0404 01020304 00 {BOOT} 04000000 0200 ffff 02"
        f"{INST} 04 92100000 0504030201000000 06 2f6170662f78 02 00 00000000 00"
        "01 62 0100000000000000 07 00000000 0000000000000000 00 00 02 f7ffffff 04 676f6e65",
    ),
    (
        "remove request",
        Kind.REQUEST,
        RemoveRequest(ctx=ctx, **inst),
        f"7e 4150 01 80 0504 01020304 00 {CTX} {INST}",
    ),
    (
        "remove reply",
        Kind.REPLY,
        RemoveReply(status_seq=5),
        "7e 4150 01 00 0504 01020304 00 05000000",
    ),
    (
        "status changed",
        Kind.NOTICE,
        StatusChanged(boot_id=boot, status_seq=6),
        f"7e 4150 01 c0 0604 01020304 00 {BOOT} 06000000",
    ),
    (
        "prepare request",
        Kind.REQUEST,
        PrepareRequest(ctx=ctx, **inst, spec_digest=dig2),
        f"7e 4150 01 80 0105 01020304 00 {CTX} {INST} {DIG2}",
    ),
    (
        "prepare reply",
        Kind.REPLY,
        PrepareReply(state=InstanceState.PREPARED, status_seq=1),
        "7e 4150 01 00 0105 01020304 00 02 01000000 00",
    ),
    (
        "commit request",
        Kind.REQUEST,
        CommitRequest(ctx=ctx, **inst),
        f"7e 4150 01 80 0205 01020304 00 {CTX} {INST}",
    ),
    (
        "commit reply",
        Kind.REPLY,
        CommitReply(state=InstanceState.STARTING, status_seq=2),
        "7e 4150 01 00 0205 01020304 00 03 02000000",
    ),
    (
        "abort request",
        Kind.REQUEST,
        AbortRequest(ctx=ctx, **inst),
        f"7e 4150 01 80 0305 01020304 00 {CTX} {INST}",
    ),
    (
        "abort reply",
        Kind.REPLY,
        AbortReply(state=InstanceState.ABSENT, status_seq=3),
        "7e 4150 01 00 0305 01020304 00 00 03000000",
    ),
    (
        "offer request",
        Kind.REQUEST,
        OfferRequest(
            ctx=ctx, transfer_id=0x0A0B0C0D, digest=dig1, size_bytes=1 << 32, chunk_bytes=65536
        ),
        f"7e 4150 01 80 0106 01020304 00 {CTX} 0d0c0b0a {DIG1} 0000000001000000 00000100",
    ),
    (
        "offer reply",
        Kind.REPLY,
        OfferReply(state=OfferState.PARTIAL, missing_chunks=3, first_missing=9),
        "7e 4150 01 00 0106 01020304 00 02 03000000 09000000",
    ),
    (
        "chunk map request",
        Kind.REQUEST,
        ChunkMapRequest(transfer_id=0x0A0B0C0D, first_chunk=8192),
        "7e 4150 01 80 0206 01020304 00 0d0c0b0a 00200000",
    ),
    (
        "chunk map reply",
        Kind.REPLY,
        ChunkMapReply(first_chunk=8192, bits=b"\xff\x01"),
        "7e 4150 01 00 0206 01020304 00 00200000 0200 ff01",
    ),
    (
        "verify request",
        Kind.REQUEST,
        VerifyRequest(transfer_id=0x0A0B0C0D),
        "7e 4150 01 80 0306 01020304 00 0d0c0b0a",
    ),
    (
        "verify reply",
        Kind.REPLY,
        VerifyReply(state=VerifyState.HASHING),
        "7e 4150 01 00 0306 01020304 00 03",
    ),
    (
        "cancel request",
        Kind.REQUEST,
        CancelRequest(transfer_id=0x0A0B0C0D),
        "7e 4150 01 80 0406 01020304 00 0d0c0b0a",
    ),
    ("cancel reply", Kind.REPLY, CancelReply(), "7e 4150 01 00 0406 01020304 00"),
    (
        "pull request",
        Kind.REQUEST,
        PullRequest(ctx=ctx, transfer_id=1, digest=dig2, first_chunk=2, chunk_bytes=4096),
        f"7e 4150 01 80 0506 01020304 00 {CTX} 01000000 {DIG2} 02000000 00100000",
    ),
    (
        "pull reply",
        Kind.REPLY,
        PullReply(size_bytes=10_000, chunks=3),
        "7e 4150 01 00 0506 01020304 00 1027000000000000 03000000",
    ),
    (
        "have request",
        Kind.REQUEST,
        HaveRequest(digests=(dig1, dig2)),
        f"7e 4150 01 80 0606 01020304 00 02 {DIG1} {DIG2}",
    ),
    (
        "have reply",
        Kind.REPLY,
        HaveReply(bits=b"\x02"),
        "7e 4150 01 00 0606 01020304 00 01 02",
    ),
    (
        "log read request",
        Kind.REQUEST,
        LogReadRequest(instance="web/api/0", transfer_id=7, offset=1 << 33, max_bytes=65536),
        "7e 4150 01 80 0107 01020304 00 09 7765622f6170692f30 07000000 0000000002000000 00000100",
    ),
    (
        "log read reply",
        Kind.REPLY,
        LogReadReply(start=(1 << 33) + 5, end=(1 << 33) + 8, length=3),
        "7e 4150 01 00 0107 01020304 00 0500000002000000 0800000002000000 03000000",
    ),
    (
        "volume flush request",
        Kind.REQUEST,
        VolumeFlushRequest(ctx=ctx, **inst, volume="data"),
        f"7e 4150 01 80 0108 01020304 00 {CTX} {INST} 04 64617461",
    ),
    (
        "volume flush reply",
        Kind.REPLY,
        VolumeFlushReply(flush_id=0x01020304),
        "7e 4150 01 00 0108 01020304 00 04030201",
    ),
    (
        "volume state request",
        Kind.REQUEST,
        VolumeStateRequest(volume="data", flush_id=0x01020304),
        "7e 4150 01 80 0208 01020304 00 04 64617461 04030201",
    ),
    (
        "volume state reply",
        Kind.REPLY,
        VolumeStateReply(
            state=FlushState.READY, manifest_digest=dig1, files=12, bytes=1 << 20, text="ok"
        ),
        f"7e 4150 01 00 0208 01020304 00 01 {DIG1} 0c000000 0000100000000000 02 6f6b",
    ),
]

REFUSALS: list[tuple[int, Refusal, str]] = [  # opcode of the request, status 1
    (
        0x0402,
        Refusal(reason=RefusalReason.STALE_GENERATION, retry_after_ms=0, text="g 3 < 4"),
        "7e 4150 01 00 0204 01020304 01 0800 00000000 07 672033203c2034",
    ),
    (
        0x7777,
        Refusal(reason=RefusalReason.UNKNOWN_OPCODE),
        "7e 4150 01 00 7777 01020304 01 0100 00000000 00",
    ),
    (
        0x0601,
        Refusal(reason=RefusalReason.LIMIT, retry_after_ms=50, text=""),
        "7e 4150 01 00 0106 01020304 01 1100 32000000 00",
    ),
]


@pytest.mark.parametrize(("name", "kind", "body", "text"), GOLDEN, ids=[g[0] for g in GOLDEN])
def test_version_1_is_what_it_was(name: str, kind: Kind, body: Body, text: str) -> None:
    wire = bytes.fromhex(text)
    assert encode(body, kind=kind, message_id=0x04030201).hex() == wire.hex()
    message = decode(wire)
    assert (message.kind, message.version, message.message_id) == (kind, 1, 0x04030201)
    assert message.opcode == body.OPCODE
    assert message.status == 0
    assert message.body == body


@pytest.mark.parametrize(("opcode", "body", "text"), REFUSALS)
def test_refusals_of_version_1_are_what_they_were(opcode: int, body: Refusal, text: str) -> None:
    wire = bytes.fromhex(text)
    encoded = encode(body, kind=Kind.REPLY, message_id=0x04030201, opcode=opcode)
    assert encoded.hex() == wire.hex()
    message = decode(wire)
    assert message.body == body
    assert message.opcode == opcode
    assert message.status == 1


def test_every_body_of_version_1_has_a_line() -> None:
    assert {(kind, body.OPCODE) for _, kind, body, _ in GOLDEN} == set(BODIES)


def test_another_vendor_id_goes_out_big_endian() -> None:
    wire = encode(CancelReply(), kind=Kind.REPLY, message_id=0, vendor_id=0x1234)
    assert wire.hex(" ") == "7e 12 34 01 00 04 06 00 00 00 00 00"
    assert decode(wire, vendor_id=0x1234).body == CancelReply()


# Numbers of version 1 that a peer may send: append-only.
ENUMS = {
    Kind: {"REPLY": 0x00, "REQUEST": 0x80, "NOTICE": 0xC0},
    Role: {"MC": 1, "AGENT": 2, "BOTH": 3},
    BootState: {"OFF": 0, "STANDBY": 1, "BOOTING": 2, "READY": 3, "FAILED": 4},
    Scope: {"LOCAL": 0, "FABRIC": 1},
    InitState: {"STARTING": 0, "READY": 1, "LEASE_EXPIRED": 2, "STOPPING": 3},
    InstanceState: {
        "ABSENT": 0,
        "STAGING": 1,
        "PREPARED": 2,
        "STARTING": 3,
        "RUNNING": 4,
        "STOPPING": 5,
        "STOPPED": 6,
        "EXITED": 7,
        "FAILED": 8,
    },
    Health: {"NONE": 0, "STARTING": 1, "HEALTHY": 2, "UNHEALTHY": 3},
    ExitReason: {"NONE": 0, "EXITED": 1, "SIGNALED": 2, "OOM_KILLED": 3, "UNKNOWN": 4},
    OfferState: {"HAVE": 0, "NEED": 1, "PARTIAL": 2},
    VerifyState: {"GOOD": 0, "INCOMPLETE": 1, "BAD_DIGEST": 2, "HASHING": 3},
    FlushState: {"SCANNING": 0, "READY": 1, "FAILED": 2},
    RefusalReason: {
        "UNKNOWN_OPCODE": 1,
        "MALFORMED": 2,
        "VERSION": 3,
        "LAYOUT": 4,
        "FOREIGN_CARD": 5,
        "FOREIGN_BOOT": 6,
        "STALE_EPOCH": 7,
        "STALE_GENERATION": 8,
        "UNKNOWN_INSTANCE": 9,
        "BUSY": 10,
        "NO_SPACE": 11,
        "NO_RUNTIME": 12,
        "BAD_DIGEST": 13,
        "MISSING_BLOB": 14,
        "BAD_SPEC": 15,
        "NO_LEASE": 16,
        "LIMIT": 17,
        "BAD_STATE": 18,
        "INTERNAL": 19,
        "NO_WINDOW": 20,
        "TOO_LARGE": 21,
    },
}


@pytest.mark.parametrize("kind", ENUMS, ids=lambda kind: kind.__name__)
def test_numbers_of_version_1_are_what_they_were(kind: type) -> None:
    assert {member.name: member.value for member in kind} == ENUMS[kind]


def test_the_layout_hash_of_version_1_is_what_it_was() -> None:
    """Not by hand: SHA-256 of the declarations. If this fails, a layout of version 1 changed."""
    assert LAYOUT_HASH.hex() == "35c2ee91dc983531"
