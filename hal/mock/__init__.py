"""The hardware of a whole card in memory, on a virtual clock, deterministic from one seed.

A `VirtualKernel` owns time, events, handles, slots and disks. Each *node* (the daemon, a CNM's
init, a CNM's agent) runs the real firmware on a real `firmware.loop.Loop`, whose clock is the
node's view of virtual time. The kernel steps the loops that have work, in a fixed order, and
then moves time to the next event: an idle hour costs nothing. What must outlive a node (disks,
running instances, power latches, cables) lives in the kernel, not in the node.

Every part takes faults while it runs and writes what was done to it into `kernel.trace`, whose
SHA-256 is the same for the same seed, also under another PYTHONHASHSEED.

    line.py      serial lines and stream pairs     faults: drop, duplicate, reorder, delay, flip,
                 (baud rate, bounded buffers)      truncate, split, garbage, cut, hang-up
    window.py    windows and doorbells             corruption, all ones, cut, lost ring, storm,
                                                   peer gone
    power.py     slots: presence, power-good       stuck on, stuck off, slow, pulled, power lost
    disk.py      a disk: files, blobs, journal     full, failed sync, failed read, slow, bit rot,
                                                   what a cut leaves of the unsynced
    spawner.py   helper programs on nodes          start refused, kill, pause, restart
    runtime.py   instances as models               start refused or slow, hang on TERM, slow death,
                                                   leak to OOM, early exit
    node.py      clocks                            drift, steps of the wall clock, a stopped node
    pci*.py      PCI functions and their bus       pulled, link down, lost writes and interrupts,
                                                   storm, AER, wrong BARs, shared IOMMU group
    cxl*.py      CXL memory devices: mailbox,      retry, busy, silence, failing commands, bad
                 labels, health, events, regions   labels, full logs, pulled
    smbus*.py    SMBus segments, muxes, register   held low, stretched, NACK, wrong PEC or count,
                 models of the parts on them       lost arbitration, mux stuck, sensor stuck
    unix_server.py  local listening sockets        no descriptor left for a connection

What it does not model, so nothing that passes here is proof of it: CPU time (a handler takes no
virtual time; a slow handler never shows as a late timer), true parallelism (one loop runs at a
time and is never interrupted in a handler), memory ordering (a publish is visible at once, in
order), UART parity, framing errors and modem lines, partial reads that tear a 32-bit word, PCIe
transactions and CXL below the window and the mailbox, kernel buffers beyond the stated bounds,
file permissions and owners, disk blocks below the record or file (SQLite's own recovery is not
run), network, and the inside of a tenant's program.
"""
