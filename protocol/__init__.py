"""Bytes <-> typed messages. Pure: no I/O, no clock, no logging. Imports nothing of ours."""
