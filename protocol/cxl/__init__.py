"""CXL's Component Command Interface: messages, and the payloads of the commands that we speak.

Ref: Compute Express Link Specification 3.1, 7.6 (FM API) and 8.2.9 (component commands). The same
payloads go through a device's mailbox, through MCTP (`message`) and through a switch's tunnel.
"""
