"""Rigs: virtual machines with real kernels and drivers for tests and benches."""
