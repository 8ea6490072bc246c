"""The ports of `hal.ports` on a real Linux kernel."""
