"""The job, step by step. Each yields what it observed and raises StepFailed when it is not so."""

from typing import Final

from tools.demo.runner import Step
from tools.demo.steps.bring_up import discover, up
from tools.demo.steps.drain import drain
from tools.demo.steps.failover import fail_over
from tools.demo.steps.image import image
from tools.demo.steps.kills import agent_killed, component_killed, daemon_killed
from tools.demo.steps.leave import down, remove
from tools.demo.steps.migrate import migrate
from tools.demo.steps.monitor import monitor
from tools.demo.steps.run import deploy, place, profile, submit
from tools.demo.steps.transfer import transfer

STEPS: Final = (
    Step(name="up", claim="keeper, daemon and every CNM are processes of their own", run=up),
    Step(name="discover", claim="the card finds what the board file describes", run=discover),
    Step(name="image", claim="an image reaches a CNM bit for bit", run=image),
    Step(name="submit", claim="a Compose file becomes a workload", run=submit),
    Step(name="place", claim="each instance is where its constraints allow", run=place),
    Step(name="deploy", claim="each runs, once, and its output is right", run=deploy),
    Step(name="profile", claim="the kernel holds each to what it declared", run=profile),
    Step(name="transfer", claim="data goes both ways through the window, unharmed", run=transfer),
    Step(name="monitor", claim="telemetry agrees with the kernel's own counters", run=monitor),
    Step(name="migrate", claim="a service moves under load and loses nothing", run=migrate),
    Step(name="fail over", claim="a CNM dies, its components run elsewhere", run=fail_over),
    Step(name="restart", claim="a component dies, its policy restarts it", run=component_killed),
    Step(name="agent killed", claim="its components do not notice", run=agent_killed),
    Step(name="daemon killed", claim="nothing that runs is touched", run=daemon_killed),
    Step(name="drain", claim="a CNM is emptied", run=drain),
    Step(name="remove", claim="a removed workload leaves nothing behind", run=remove),
    Step(name="down", claim="nothing is left of the card", run=down),
)
