"""NVMe Management Interface: the basic management command, and messages over MCTP."""
