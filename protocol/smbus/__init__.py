"""SMBus: packet error codes, MCTP's binding to it, and PMBus's formats of numbers."""
