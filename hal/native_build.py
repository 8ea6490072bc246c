"""Build script of `hal._native`, the one compiled part (DESIGN D11); setup.py runs it through cffi.

It holds what Python cannot promise: one aligned load or store of exactly the given width, and the
barriers around it. Ordering is C11's; the compiler picks the instructions of the processor. Bounds
and alignment are the caller's (`hal.native.Words` checks them).
"""

from typing import Final

from cffi import FFI  # type: ignore[import-untyped]  # cffi ships no types

DECLARATIONS: Final = """
uint32_t apf_load32_acquire(const char *base, size_t offset);
void apf_store32_release(char *base, size_t offset, uint32_t value);
uint64_t apf_load64(const char *base, size_t offset);
void apf_store64(char *base, size_t offset, uint64_t value);
void apf_full_barrier(void);
void apf_copy_to(char *base, size_t offset, const char *source, size_t length);
void apf_copy_from(const char *base, size_t offset, char *target, size_t length);
"""

# The volatile access keeps the compiler from splitting, merging or repeating it; the fences give
# the order against the plain accesses around it (C11 7.17.4.1, as GCC and Clang implement them).
SOURCE: Final = """
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static uint32_t apf_load32_acquire(const char *base, size_t offset)
{
    uint32_t value = *(const volatile uint32_t *)(base + offset);
    atomic_thread_fence(memory_order_acquire);
    return value;
}

static void apf_store32_release(char *base, size_t offset, uint32_t value)
{
    atomic_thread_fence(memory_order_release);
    *(volatile uint32_t *)(base + offset) = value;
}

static uint64_t apf_load64(const char *base, size_t offset)
{
    return *(const volatile uint64_t *)(base + offset);
}

static void apf_store64(char *base, size_t offset, uint64_t value)
{
    *(volatile uint64_t *)(base + offset) = value;
}

static void apf_full_barrier(void)
{
    atomic_thread_fence(memory_order_seq_cst);
}

static void apf_copy_to(char *base, size_t offset, const char *source, size_t length)
{
    memcpy(base + offset, source, length);
}

static void apf_copy_from(const char *base, size_t offset, char *target, size_t length)
{
    memcpy(target, base + offset, length);
}
"""

FFIBUILDER: Final = FFI()
FFIBUILDER.cdef(DECLARATIONS)
# optional: a host without a compiler still installs, and uses the fallback where there is one.
FFIBUILDER.set_source("hal._native", SOURCE, extra_compile_args=["-O2", "-std=c11"], optional=True)
