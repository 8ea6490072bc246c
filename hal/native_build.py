"""Build script of `hal._native`, the one compiled part (DESIGN D11); setup.py runs it through cffi.

It holds what Python cannot promise: one aligned load or store of exactly the given width, and the
barriers around it. Ordering is C11's; the compiler picks the instructions of the processor. For
device memory C11 promises nothing: those barriers are the processor's own. Bounds and alignment
are the caller's (`hal.native.Words` and `hal.native_mmio` check them).
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
uint32_t apf_mmio_read32(const char *base, size_t offset);
void apf_mmio_write32(char *base, size_t offset, uint32_t value);
uint64_t apf_mmio_read64(const char *base, size_t offset);
void apf_mmio_write64(char *base, size_t offset, uint64_t value);
void apf_mmio_barrier(void);
void apf_mmio_copy_to(char *base, size_t offset, const char *source, size_t length);
int apf_mmio_copy_from(const char *base, size_t offset, char *target, size_t length);
uint64_t apf_mmio_read32_loop(const char *base, size_t offset, uint64_t count);
void apf_mmio_write32_loop(char *base, size_t offset, uint32_t value, uint64_t count);
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

/* Device memory. On x86 it is mapped uncached, and accesses to it are not reordered with each
   other (Intel SDM vol. 3A, 12.3); elsewhere the mapping is of a device type, and a barrier of
   the whole system orders it against normal memory, as the kernel's readl and writel do. */
#if defined(__x86_64__) || defined(__i386__)
#define APF_IO_BARRIER() __asm__ __volatile__("mfence" ::: "memory")
#define APF_IO_ORDER() __asm__ __volatile__("" ::: "memory")
#elif defined(__aarch64__)
#define APF_IO_BARRIER() __asm__ __volatile__("dsb sy" ::: "memory")
#define APF_IO_ORDER() __asm__ __volatile__("dmb osh" ::: "memory")
#elif defined(__riscv)
#define APF_IO_BARRIER() __asm__ __volatile__("fence iorw,iorw" ::: "memory")
#define APF_IO_ORDER() APF_IO_BARRIER()
#else
#error "no barrier for device memory is known for this processor"
#endif

static uint32_t apf_mmio_read32(const char *base, size_t offset)
{
    uint32_t value = *(const volatile uint32_t *)(base + offset);
    APF_IO_ORDER();
    return value;
}

static void apf_mmio_write32(char *base, size_t offset, uint32_t value)
{
    APF_IO_ORDER();
    *(volatile uint32_t *)(base + offset) = value;
}

static uint64_t apf_mmio_read64(const char *base, size_t offset)
{
    uint64_t value = *(const volatile uint64_t *)(base + offset);
    APF_IO_ORDER();
    return value;
}

static void apf_mmio_write64(char *base, size_t offset, uint64_t value)
{
    APF_IO_ORDER();
    *(volatile uint64_t *)(base + offset) = value;
}

static void apf_mmio_barrier(void)
{
    APF_IO_BARRIER();
}

/* Offset and length are multiples of 4: words of 8 bytes, at the ends of 4. */
static void apf_mmio_copy_to(char *base, size_t offset, const char *source, size_t length)
{
    char *to = base + offset, *end = to + length;
    APF_IO_ORDER();
    while (to != end) {
        if ((uintptr_t)to % 8 || end - to < 8) {
            uint32_t word;
            memcpy(&word, source, 4);
            *(volatile uint32_t *)to = word;
            to += 4, source += 4;
        } else {
            uint64_t word;
            memcpy(&word, source, 8);
            *(volatile uint64_t *)to = word;
            to += 8, source += 8;
        }
    }
}

/* Returns whether it read nothing but ones. */
static int apf_mmio_copy_from(const char *base, size_t offset, char *target, size_t length)
{
    const char *from = base + offset, *end = from + length;
    uint64_t all = ~(uint64_t)0;
    while (from != end) {
        if ((uintptr_t)from % 8 || end - from < 8) {
            uint32_t word = *(const volatile uint32_t *)from;
            memcpy(target, &word, 4);
            all &= word | ~(uint64_t)0xFFFFFFFFu;
            from += 4, target += 4;
        } else {
            uint64_t word = *(const volatile uint64_t *)from;
            memcpy(target, &word, 8);
            all &= word;
            from += 8, target += 8;
        }
    }
    APF_IO_ORDER();
    return all == ~(uint64_t)0;
}

/* For the benchmark alone: what the accesses cost without Python around each. */
static uint64_t apf_mmio_read32_loop(const char *base, size_t offset, uint64_t count)
{
    uint64_t sum = 0;
    while (count--)
        sum += apf_mmio_read32(base, offset);
    return sum;
}

static void apf_mmio_write32_loop(char *base, size_t offset, uint32_t value, uint64_t count)
{
    while (count--)
        apf_mmio_write32(base, offset, value);
}
"""

FFIBUILDER: Final = FFI()
FFIBUILDER.cdef(DECLARATIONS)
# optional: a host without a compiler still installs, and uses the fallback where there is one.
FFIBUILDER.set_source("hal._native", SOURCE, extra_compile_args=["-O2", "-std=c11"], optional=True)
