"""Hardware in the loop, in virtual machines: stock kernels, stock drivers, QEMU's devices."""
