"""Two endpoints over a virtual serial line: retries, matching, the reply cache, hang-ups."""

from dataclasses import dataclass, field

import pytest

from firmware.endpoint import (
    ATTEMPTS,
    MOST_PATIENCE,
    REPLY_KEEP_MS,
    TAGS,
    TIMEOUT_MS,
    Deferred,
    Endpoint,
    RequestError,
    RequestLost,
    RequestRefused,
    RequestTimedOut,
)
from firmware.link import Link
from firmware.loop import MS, Loop
from hal.mock.entropy import MockEntropy
from hal.mock.kernel import VirtualKernel
from hal.mock.line import MockLine
from hal.ports import ByteStream
from protocol.apf import (
    HaveReply,
    HaveRequest,
    Refusal,
    RefusalReason,
    StatusChanged,
    StatusReply,
    StatusRequest,
    VerifyReply,
    VerifyRequest,
    VerifyState,
)
from protocol.mctp.control import ControlState, Responder

BOOT = b"b" * 16
REPLY = StatusReply(boot_id=BOOT, status_seq=7, total=0)


@dataclass
class Ends:
    kernel: VirtualKernel
    line: MockLine
    card: Endpoint
    cnm: Endpoint
    answers: list[object] = field(default_factory=list)

    def ask(self, body: object = StatusRequest(cursor=0), **options: int) -> None:
        self.card.request(body, self.answers.append, **options)


@pytest.fixture
def ends() -> Ends:
    kernel = VirtualKernel(3)
    line = kernel.add_line(MockLine(kernel, "cnm0-agent", baud=921_600))
    made = []
    for name, side in (("card", "a"), ("cnm", "b")):
        node = kernel.node(name)
        loop = Loop(node.clock)
        kernel.attach(name, loop)

        def opener(side: str = side, node: object = node) -> ByteStream:
            return line.open(side, node)

        link = Link(loop, opener, name=name)
        responder = Responder(ControlState(uuid=b"u" * 16, types=(0, 0x7E)))
        made.append(
            Endpoint(
                loop,
                link,
                entropy=MockEntropy(node),
                name=name,
                answer_control=responder.answer,
            )
        )
    return Ends(kernel, line, *made)


def test_a_request_gets_its_reply(ends: Ends) -> None:
    ends.cnm.serve(StatusRequest, lambda _body: REPLY)
    ends.ask()
    ends.kernel.run_for(100 * MS)
    assert ends.answers == [REPLY]


def test_an_unknown_opcode_is_refused_by_type(ends: Ends) -> None:
    ends.ask()
    ends.kernel.run_for(100 * MS)
    [error] = ends.answers
    assert isinstance(error, RequestRefused)
    assert error.refusal.reason == RefusalReason.UNKNOWN_OPCODE


def test_nobody_there_times_out_after_all_attempts_and_frees_its_tag(ends: Ends) -> None:
    ends.cnm.link.close()
    for _ in range(20):
        ends.ask()
    ends.kernel.run_for(3 * ATTEMPTS * TIMEOUT_MS * MS + 100 * MS)
    assert len(ends.answers) == 20
    assert all(isinstance(answer, RequestTimedOut) for answer in ends.answers)


def test_a_lost_reply_is_asked_for_again_and_not_carried_out_twice(ends: Ends) -> None:
    carried: list[int] = []

    def handler(_body: StatusRequest) -> StatusReply:
        carried.append(1)
        return REPLY

    ends.cnm.serve(StatusRequest, handler)
    ends.line.b_to_a.faults.cut = True
    ends.ask()
    ends.kernel.run_for(TIMEOUT_MS * MS // 2)
    ends.line.b_to_a.faults.cut = False
    ends.kernel.run_for(TIMEOUT_MS * MS)
    assert ends.answers == [REPLY]
    assert carried == [1]
    assert ends.cnm.counters["rx_repeated"] == 1


def test_a_late_reply_is_never_taken_for_the_next_one(ends: Ends) -> None:
    promises: list[Deferred] = []

    def handler(_body: StatusRequest) -> Deferred:
        promises.append(Deferred())
        return promises[-1]

    ends.cnm.serve(StatusRequest, handler)
    ends.ask(attempts=1)
    ends.kernel.run_for((TIMEOUT_MS + 10) * MS)
    assert isinstance(ends.answers[0], RequestTimedOut)
    ends.ask(attempts=1)
    ends.kernel.run_for(50 * MS)
    promises[0].complete(StatusReply(boot_id=BOOT, status_seq=1, total=0))
    ends.kernel.run_for(50 * MS)
    assert len(ends.answers) == 1
    assert ends.card.counters["rx_stray_reply"] == 1
    promises[1].complete(StatusReply(boot_id=BOOT, status_seq=2, total=0))
    ends.kernel.run_for(50 * MS)
    assert ends.answers[1].status_seq == 2


@pytest.mark.parametrize(("patience", "times"), [(2, 2), (100, MOST_PATIENCE)])
def test_a_patient_end_waits_longer_but_never_longer_than_replies_are_kept(
    ends: Ends, patience: int, times: int
) -> None:
    slow = Endpoint(
        ends.card._reactor,
        ends.card.link,
        entropy=MockEntropy(ends.kernel.node("slow")),
        name="slow",
        patience=patience,
    )
    ends.cnm.serve(StatusRequest, lambda _body: Deferred())
    slow.request(StatusRequest(cursor=0), ends.answers.append, attempts=1)
    ends.kernel.run_for((times * TIMEOUT_MS - 50) * MS)
    assert ends.answers == []
    ends.kernel.run_for(100 * MS)
    assert isinstance(ends.answers[0], RequestTimedOut)
    assert MOST_PATIENCE * ATTEMPTS * TIMEOUT_MS < REPLY_KEEP_MS


def test_busy_waits_as_told_and_does_not_use_up_attempts(ends: Ends) -> None:
    asked: list[int] = []

    def handler(_body: StatusRequest) -> object:
        asked.append(1)
        if len(asked) < 6:
            return Refusal(reason=RefusalReason.BUSY, retry_after_ms=10)
        return REPLY

    ends.cnm.serve(StatusRequest, handler)
    ends.ask()
    ends.kernel.run_for(400 * MS)
    assert ends.answers == [REPLY]
    assert len(asked) == 6


def test_a_deferred_answer_that_is_asked_for_again_is_given_once(ends: Ends) -> None:
    promises: list[Deferred] = []

    def handler(_body: StatusRequest) -> Deferred:
        promises.append(Deferred())
        return promises[-1]

    ends.cnm.serve(StatusRequest, handler)
    ends.ask()
    ends.kernel.run_for((2 * TIMEOUT_MS + 50) * MS)
    assert len(promises) == 1
    promises[0].complete(REPLY)
    ends.kernel.run_for(50 * MS)
    assert ends.answers == [REPLY]


def test_replies_are_kept_for_as_long_as_an_id_may_be_retried_and_no_longer(ends: Ends) -> None:
    assert ATTEMPTS * TIMEOUT_MS < REPLY_KEEP_MS
    ends.cnm.serve(StatusRequest, lambda _body: REPLY)
    for _ in range(3):
        ends.ask()
        ends.kernel.run_for(10 * MS)
    assert len(ends.cnm._replies) == 3
    ends.kernel.run_for(REPLY_KEEP_MS * MS)
    ends.ask()
    ends.kernel.run_for(10 * MS)
    assert len(ends.cnm._replies) == 1


def test_more_than_eight_requests_wait_for_a_tag_and_all_are_answered(ends: Ends) -> None:
    ends.cnm.serve(VerifyRequest, lambda body: VerifyReply(state=VerifyState(body.transfer_id % 4)))
    for number in range(40):
        ends.ask(VerifyRequest(transfer_id=number))
    ends.kernel.run_for(500 * MS)
    assert [answer.state for answer in ends.answers] == [n % 4 for n in range(40)]


def test_a_full_queue_loses_the_request_and_says_so(ends: Ends) -> None:
    ends.cnm.link.close()
    for _ in range(400):
        ends.ask()
    ends.kernel.run_for(MS)
    lost = [answer for answer in ends.answers if isinstance(answer, RequestLost)]
    assert len(lost) == 400 - TAGS - 256
    assert "256" in str(lost[0])


def test_notices_arrive_and_are_not_answered(ends: Ends) -> None:
    heard: list[StatusChanged] = []
    ends.card.on_notice(StatusChanged, heard.append)
    notice = StatusChanged(boot_id=BOOT, status_seq=3)
    assert ends.cnm.notify(notice)
    ends.kernel.run_for(50 * MS)
    assert heard == [notice]
    assert ends.cnm.link.drops["rx_packets"] == 0


def test_a_line_that_hangs_up_is_opened_again_and_the_request_survives(ends: Ends) -> None:
    ends.cnm.serve(StatusRequest, lambda _body: REPLY)
    ends.line.hang_up()
    ends.ask()
    ends.kernel.run_for(100 * MS)
    ends.line.plug()
    ends.kernel.run_for(1_000 * MS)
    assert ends.answers == [REPLY]


def test_mctp_control_requests_are_answered_by_the_endpoint(ends: Ends) -> None:
    answers: list[object] = []
    ends.card.link.local_eid = 8
    ends.card.control(0x03, b"", answers.append)
    ends.kernel.run_for(50 * MS)
    assert answers == [b"\0" + b"u" * 16]
    assert ends.cnm.link.peer_eid == 8


def test_garbage_on_the_line_costs_nothing_but_itself(ends: Ends) -> None:
    ends.cnm.serve(StatusRequest, lambda _body: REPLY)
    ends.line.a_to_b.inject(bytes(range(256)) * 4)
    ends.ask()
    ends.kernel.run_for(2_000 * MS)
    assert ends.answers == [REPLY]
    assert sum(ends.cnm.link.drops.values()) > 0


def test_abandon_ends_everything_that_waits(ends: Ends) -> None:
    ends.cnm.link.close()
    for _ in range(12):
        ends.ask()
    ends.card.abandon("the module is gone")
    assert len(ends.answers) == 12
    assert all(isinstance(answer, RequestError) for answer in ends.answers)
    ends.kernel.run_for(5_000 * MS)
    assert len(ends.answers) == 12


def test_an_urgent_notice_between_the_packets_of_a_request_breaks_neither(ends: Ends) -> None:
    long = HaveRequest(digests=tuple(bytes([n]) * 32 for n in range(40)))
    asked, heard = [], []
    ends.line.buffer_bytes = 100  # a driver that takes a packet and a bit

    def handler(body: HaveRequest) -> HaveReply:
        asked.append(body)
        return HaveReply(bits=bytes(5))

    ends.cnm.serve(HaveRequest, handler)
    ends.cnm.on_notice(StatusChanged, heard.append)
    for _ in range(9):  # every tag that a request may have
        ends.ask(long)
        ends.card.notify(StatusChanged(boot_id=BOOT, status_seq=1), urgent=True)
    ends.kernel.run_for((TIMEOUT_MS - 50) * MS)
    assert len(asked) == 9
    assert len(heard) == 9
    assert ends.cnm.link.drops["superseded"] == 0


def test_once_an_eid_is_assigned_packets_for_others_are_dropped_and_counted(ends: Ends) -> None:
    ends.cnm.serve(StatusRequest, lambda _body: REPLY)
    ends.card.link.peer_eid = 12
    ends.ask(attempts=1)
    ends.kernel.run_for(20 * MS)
    assert ends.answers == [REPLY], "nothing is assigned yet: the link has two ends"
    ends.cnm.link.local_eid = 9
    ends.ask(attempts=1)
    ends.kernel.run_for(20 * MS)
    assert ends.cnm.link.drops["not_local"] == 1
    ends.card.link.peer_eid = 9
    ends.ask(attempts=1)
    ends.kernel.run_for(20 * MS)
    assert ends.answers == [REPLY, REPLY]
