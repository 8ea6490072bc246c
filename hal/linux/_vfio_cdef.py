"""The kernel's VFIO layouts, by cffi; nothing is compiled and no library is opened.

Ref: include/uapi/linux/vfio.h of Linux 6.1: every name below is its name there, and
Documentation/driver-api/vfio.rst. `tests` compare sizes and offsets with a compiler's where one is.
"""

import fcntl
from typing import Any, Final

from cffi import FFI  # type: ignore[import-untyped]  # cffi ships no types

CDEF: Final = """
struct vfio_info_cap_header { uint16_t id; uint16_t version; uint32_t next; };

struct vfio_group_status { uint32_t argsz; uint32_t flags; };

struct vfio_device_info {
    uint32_t argsz; uint32_t flags; uint32_t num_regions; uint32_t num_irqs; uint32_t cap_offset;
};

struct vfio_region_info {
    uint32_t argsz; uint32_t flags; uint32_t index; uint32_t cap_offset;
    uint64_t size; uint64_t offset;
};

struct vfio_irq_info { uint32_t argsz; uint32_t flags; uint32_t index; uint32_t count; };

struct vfio_irq_set {
    uint32_t argsz; uint32_t flags; uint32_t index; uint32_t start; uint32_t count; uint8_t data[];
};

struct vfio_pci_dependent_device {
    uint32_t group_id; uint16_t segment; uint8_t bus; uint8_t devfn;
};

struct vfio_pci_hot_reset_info {
    uint32_t argsz; uint32_t flags; uint32_t count; struct vfio_pci_dependent_device devices[];
};

struct vfio_pci_hot_reset { uint32_t argsz; uint32_t flags; uint32_t count; int32_t group_fds[]; };

struct vfio_iommu_type1_info {
    uint32_t argsz; uint32_t flags; uint64_t iova_pgsizes; uint32_t cap_offset;
};

struct vfio_iova_range { uint64_t start; uint64_t end; };

struct vfio_iommu_type1_info_cap_iova_range {
    struct vfio_info_cap_header header;
    uint32_t nr_iovas; uint32_t reserved; struct vfio_iova_range iova_ranges[];
};

struct vfio_iommu_type1_dma_map {
    uint32_t argsz; uint32_t flags; uint64_t vaddr; uint64_t iova; uint64_t size;
};

struct vfio_iommu_type1_dma_unmap {
    uint32_t argsz; uint32_t flags; uint64_t iova; uint64_t size;
};
"""

ffi: Final = FFI()
ffi.cdef(CDEF)

# _IO(';', 100 + n): no direction and no size are in the number (VFIO_TYPE, VFIO_BASE)
_IO: Final = ord(";") << 8 | 100
VFIO_GET_API_VERSION: Final = _IO + 0
VFIO_CHECK_EXTENSION: Final = _IO + 1
VFIO_SET_IOMMU: Final = _IO + 2
VFIO_GROUP_GET_STATUS: Final = _IO + 3
VFIO_GROUP_SET_CONTAINER: Final = _IO + 4
VFIO_GROUP_UNSET_CONTAINER: Final = _IO + 5
VFIO_GROUP_GET_DEVICE_FD: Final = _IO + 6
VFIO_DEVICE_GET_INFO: Final = _IO + 7
VFIO_DEVICE_GET_REGION_INFO: Final = _IO + 8
VFIO_DEVICE_GET_IRQ_INFO: Final = _IO + 9
VFIO_DEVICE_SET_IRQS: Final = _IO + 10
VFIO_DEVICE_RESET: Final = _IO + 11
VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: Final = _IO + 12
VFIO_DEVICE_PCI_HOT_RESET: Final = _IO + 13
VFIO_IOMMU_GET_INFO: Final = _IO + 12
VFIO_IOMMU_MAP_DMA: Final = _IO + 13
VFIO_IOMMU_UNMAP_DMA: Final = _IO + 14

API_VERSION: Final = 0
TYPE1_IOMMU: Final = 1
TYPE1V2_IOMMU: Final = 3
UNMAP_ALL: Final = 9  # extension: VFIO_DMA_UNMAP_FLAG_ALL is known

GROUP_FLAGS_VIABLE: Final = 1 << 0
GROUP_FLAGS_CONTAINER_SET: Final = 1 << 1
DEVICE_FLAGS_RESET: Final = 1 << 0
DEVICE_FLAGS_PCI: Final = 1 << 1
REGION_FLAG_READ: Final = 1 << 0
REGION_FLAG_WRITE: Final = 1 << 1
REGION_FLAG_MMAP: Final = 1 << 2
REGION_FLAG_CAPS: Final = 1 << 3
REGION_CAP_SPARSE_MMAP: Final = 1  # VFIO_REGION_INFO_CAP_SPARSE_MMAP
PCI_ROM_REGION: Final = 6  # VFIO_PCI_ROM_REGION_INDEX; 0 to 5 are the BARs
PCI_CONFIG_REGION: Final = 7  # VFIO_PCI_CONFIG_REGION_INDEX
IRQ_INFO_EVENTFD: Final = 1 << 0
IRQ_INFO_MASKABLE: Final = 1 << 1
IRQ_INFO_AUTOMASKED: Final = 1 << 2
IRQ_SET_DATA_NONE: Final = 1 << 0
IRQ_SET_DATA_EVENTFD: Final = 1 << 2
IRQ_SET_ACTION_MASK: Final = 1 << 3
IRQ_SET_ACTION_UNMASK: Final = 1 << 4
IRQ_SET_ACTION_TRIGGER: Final = 1 << 5
PCI_INTX_IRQ: Final = 0  # VFIO_PCI_*_IRQ_INDEX
PCI_MSI_IRQ: Final = 1
PCI_MSIX_IRQ: Final = 2
PCI_ERR_IRQ: Final = 3
PCI_REQ_IRQ: Final = 4
IOMMU_INFO_PGSIZES: Final = 1 << 0
IOMMU_INFO_CAPS: Final = 1 << 1
TYPE1_INFO_CAP_IOVA_RANGE: Final = 1
DMA_MAP_FLAG_READ: Final = 1 << 0
DMA_MAP_FLAG_WRITE: Final = 1 << 1
DMA_UNMAP_FLAG_ALL: Final = 1 << 1

INFO_LIMIT_BYTES: Final = 65_536  # of a reply with capabilities: more is not believed
_CAPS_LIMIT: Final = 64  # capabilities in one chain


def struct(name: str, **values: Any) -> Any:
    """A zeroed struct with `argsz` and these fields set."""
    made = ffi.new(f"struct {name} *", values)
    made.argsz = ffi.sizeof(made[0])
    return made


def call(fd: int, request: int, argument: Any) -> int:
    """ioctl(2) with a struct of ours as argument. Raises OSError."""
    answer: int = fcntl.ioctl(fd, request, ffi.buffer(argument), True)
    return answer


def call_text(fd: int, request: int, text: bytes) -> int:
    """ioctl(2) with a NUL-terminated text; what it returns. Raises OSError."""
    answer: int = fcntl.ioctl(fd, request, bytearray(text), True)
    return answer


def call_sized(fd: int, request: int, name: str, **values: Any) -> tuple[Any, bytes]:
    """As `call`, for a reply that may be longer than its struct: asked again with the room that
    the kernel named. Returns the struct, and all of the reply. Raises OSError."""
    first = struct(name, **values)
    call(fd, request, first)
    length = min(first.argsz, INFO_LIMIT_BYTES)
    if length <= ffi.sizeof(first[0]):
        return first, bytes(ffi.buffer(first))
    reply = bytearray(length)
    head = struct(name, **values)
    head.argsz = length
    reply[: ffi.sizeof(head[0])] = bytes(ffi.buffer(head))
    fcntl.ioctl(fd, request, reply, True)
    kept = ffi.new(f"struct {name} *")
    ffi.buffer(kept)[:] = bytes(reply[: ffi.sizeof(kept[0])])
    return kept, bytes(reply)


def capabilities(reply: bytes, first_offset: int) -> dict[int, bytes]:
    """Capability id -> its bytes to the end of the reply. A chain that points out of the reply
    or round in a circle ends where it does so."""
    found: dict[int, bytes] = {}
    offset, head = first_offset, ffi.sizeof("struct vfio_info_cap_header")
    for _ in range(_CAPS_LIMIT):
        if not 0 < offset <= len(reply) - head:
            break
        header = ffi.from_buffer("struct vfio_info_cap_header *", reply[offset : offset + head])
        found.setdefault(header.id, reply[offset:])
        offset = header.next
    return found
