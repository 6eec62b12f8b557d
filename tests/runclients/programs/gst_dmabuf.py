"""GStreamer's GstDmaBufAllocator, as Debian packages it: buffers of /dev/dma_heap and of /dev/udmabuf go through a
pipeline whose elements map them (with DMA_BUF_IOCTL_SYNC around, which is the allocator's doing); every pixel
of what comes out is compared.
"""
import fcntl, os, struct, sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstAllocators", "1.0")
from gi.repository import Gst, GstAllocators

WIDTH, HEIGHT, FRAMES = 320, 240, 30
SIZE = WIDTH * HEIGHT * 4

def heap_buffer(heap):
    arg = bytearray(struct.pack("QIIQ", SIZE, 0, os.O_RDWR | os.O_CLOEXEC, 0))
    fcntl.ioctl(heap, 0xc0184800, arg)  # DMA_HEAP_IOCTL_ALLOC
    return struct.unpack("QIIQ", arg)[1]

def udmabuf(dev):
    size = (SIZE + 4095) // 4096 * 4096
    mem = os.memfd_create("frame", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(mem, size)
    fcntl.fcntl(mem, 1033, 2)  # F_ADD_SEALS, F_SEAL_SHRINK
    fd = fcntl.ioctl(dev, 0x40187542, bytearray(struct.pack("IIQQ", mem, 1, 0, size)))  # UDMABUF_CREATE
    os.close(mem)
    return fd

def frame(n):
    return bytes((x + n) & 255 if c == 0 else y & 255 if c == 1 else n * 7 & 255 if c == 2 else 255
                 for y in range(HEIGHT) for x in range(WIDTH) for c in range(4))

def stream(make, name):
    allocator = GstAllocators.DmaBufAllocator.new()
    pipeline = Gst.parse_launch(
        f"appsrc name=in format=time caps=video/x-raw,format=BGRA,width={WIDTH},height={HEIGHT},framerate=30/1 "
        "! videoconvert ! video/x-raw,format=RGBA ! appsink name=out sync=false max-buffers=4")
    source, sink = pipeline.get_by_name("in"), pipeline.get_by_name("out")
    pipeline.set_state(Gst.State.PLAYING)
    for n in range(FRAMES):
        memory = GstAllocators.DmaBufAllocator.alloc(allocator, make(), SIZE)
        assert GstAllocators.is_dmabuf_memory(memory)
        buf = Gst.Buffer.new()
        buf.append_memory(memory)
        want = frame(n)
        assert buf.fill(0, want) == SIZE
        buf.pts, buf.duration = n * Gst.SECOND // 30, Gst.SECOND // 30
        assert source.emit("push-buffer", buf) == Gst.FlowReturn.OK
        sample = sink.emit("try-pull-sample", 20 * Gst.SECOND)
        assert sample, "no frame came out"
        out = sample.get_buffer()
        got = out.extract_dup(0, out.get_size())
        swapped = bytearray(want)
        swapped[0::4], swapped[2::4] = want[2::4], want[0::4]
        assert got == bytes(swapped), f"frame {n} is another picture"
    source.emit("end-of-stream")
    pipeline.set_state(Gst.State.NULL)
    print("gstreamer:", FRAMES, "frames in", name, "buffers, pixel by pixel")

Gst.init(None)
heap = os.open("/dev/dma_heap/system", os.O_RDWR | os.O_CLOEXEC)
stream(lambda: heap_buffer(heap), "dma-heap")
dev = os.open("/dev/udmabuf", os.O_RDWR | os.O_CLOEXEC)
stream(lambda: udmabuf(dev), "udmabuf")
