"""The whole system on real drivers: the card's daemon in one machine, a CNM's init in each of two
others. They reach each other by ttys (pci-serial) and PCI functions (ivshmem) only: no network, and
no file system that any of them may write and another one see.
"""
