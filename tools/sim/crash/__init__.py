"""Crash points: no power cut, wherever it comes, takes an acknowledged decision from the card.

events    what was done to the disk, in order
vfs       SQLite's writes, recorded below SQLite; oscalls: Python's own file calls
operations, record   the card's decisions, written by the production's journal
disk, fates          what a cut leaves: unsynced writes lost, reordered, torn at 512 B
trial, sweep         every image opened by the production's code, and compared
report    `run`: all of it
"""

from tools.sim.crash.report import CrashReport, run

__all__ = ["CrashReport", "run"]
