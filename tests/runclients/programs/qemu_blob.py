"""QEMU's virtio-gpu with blob resources, as Debian packages it: guest memory becomes a dma-buf by
/dev/udmabuf (UDMABUF_CREATE_LIST of scattered pages), QEMU maps that and shows it on a screen.

The guest is this script: it speaks to the virtio device by way of QEMU's gdb stub, which writes physical
memory, and compares QEMU's screenshot with the picture that it has put into guest memory.
"""
import json, os, socket, struct, subprocess, sys, tempfile, time

QEMU = sys.argv[1] if len(sys.argv) > 1 else "qemu-system-x86_64"
WIDTH, HEIGHT = 64, 64
MMIO, SLOT = 0xFEB00000, 0x200

def connect(path):
    for _ in range(500):
        try:
            s = socket.socket(socket.AF_UNIX)
            s.connect(path)
            s.settimeout(30)
            return s
        except OSError:
            time.sleep(0.02)
    sys.exit("qemu does not answer on " + path)

class Memory:
    """Physical memory, by the gdb remote protocol."""
    def __init__(self, path):
        self.s = connect(path)
        self.command("Qqemu.PhyMemMode:1")
    def command(self, text):
        self.s.sendall(b"$%s#%02x" % (text.encode(), sum(text.encode()) % 256))
        got = b""
        while b"#" not in got or len(got.split(b"#", 1)[1]) < 2:
            part = self.s.recv(65536)
            if not part:
                sys.exit("qemu has ended")
            got += part
        self.s.sendall(b"+")
        return got.lstrip(b"+")[1:].split(b"#")[0].decode()
    def write(self, addr, data):
        for i in range(0, len(data), 1024):
            part = data[i:i + 1024]
            if self.command("M%x,%x:%s" % (addr + i, len(part), part.hex())) != "OK":
                sys.exit("cannot write guest memory at %#x" % (addr + i))
    def read(self, addr, n):
        return bytes.fromhex(self.command("m%x,%x" % (addr, n)))

class Device:
    """The virtio-gpu on one of the virtio-mmio slots."""
    def __init__(self, mem):
        self.mem, self.seen = mem, 0
        slots = [MMIO + i * SLOT for i in range(24)]
        self.base = next(b for b in slots if self.reg(0, b) == 0x74726976 and self.reg(8, b) == 16)
        assert self.reg(4) == 2, "not a modern device"
        self.set(0x70, 0); self.set(0x70, 1); self.set(0x70, 3)
        self.set(0x14, 0); low = self.reg(0x10)
        assert low & 1 << 3, "qemu offers no blob resources"
        self.set(0x24, 0); self.set(0x20, 1 << 3)
        self.set(0x24, 1); self.set(0x20, 1)  # VIRTIO_F_VERSION_1
        self.set(0x70, 11)
        assert self.reg(0x70) & 8, "features refused"
        self.desc, self.avail, self.used, self.buf = 0x100000, 0x101000, 0x102000, 0x103000
        self.set(0x30, 0); self.set(0x38, 8)
        for r, a in (0x80, self.desc), (0x90, self.avail), (0xa0, self.used):
            self.set(r, a); self.set(r + 4, 0)
        self.set(0x44, 1)
        self.set(0x70, 15)
    def reg(self, off, base=None):
        return struct.unpack("<I", self.mem.read((base or self.base) + off, 4))[0]
    def set(self, off, value):
        self.mem.write(self.base + off, struct.pack("<I", value))
    def do(self, kind, body):
        request = struct.pack("<IIQII", kind, 0, 0, 0, 0) + body
        self.mem.write(self.buf, request)
        self.mem.write(self.buf + 0x800, bytes(64))
        self.mem.write(self.desc, struct.pack("<QIHHQIHH", self.buf, len(request), 1, 1, self.buf + 0x800, 64, 2, 0))
        self.mem.write(self.avail + 4 + 2 * (self.seen % 8), struct.pack("<H", 0))
        self.seen += 1
        self.mem.write(self.avail + 2, struct.pack("<H", self.seen))
        self.set(0x50, 0)
        for _ in range(500):
            if struct.unpack("<H", self.mem.read(self.used + 2, 2))[0] == self.seen:
                return struct.unpack("<I", self.mem.read(self.buf + 0x800, 4))[0]
            time.sleep(0.01)
        sys.exit("the device does not answer")

def main():
    tmp = tempfile.mkdtemp()
    qemu = subprocess.Popen([QEMU, "-machine", "microvm,memory-backend=ram,accel=tcg", "-m", "64", "-nodefaults", "-no-user-config", "-S",
        "-display", "none", "-object", "memory-backend-memfd,id=ram,size=64M,share=on", "-global", "virtio-mmio.force-legacy=false",
        "-device", "virtio-gpu-device,blob=on", "-chardev", f"socket,path={tmp}/gdb,server=on,wait=off,id=gdb", "-gdb", "chardev:gdb",
        "-qmp", f"unix:{tmp}/qmp,server=on,wait=off"])
    try:
        mem = Memory(tmp + "/gdb")
        dev = Device(mem)
        picture = b"".join(struct.pack("<BBBx", x * 4, y * 4, (x ^ y) * 4) for y in range(HEIGHT) for x in range(WIDTH))
        pages = [0x300000, 0x205000, 0x400000, 0x201000]  # scattered, and backwards
        for i, page in enumerate(pages):
            mem.write(page, picture[i * 4096:(i + 1) * 4096])
        entries = b"".join(struct.pack("<QII", p, 4096, 0) for p in pages)
        ok = dev.do(0x010c, struct.pack("<IIIIQQ", 1, 1, 2, len(pages), 0, len(picture)) + entries)   # RESOURCE_CREATE_BLOB
        assert ok == 0x1100, "RESOURCE_CREATE_BLOB: %#x" % ok
        ok = dev.do(0x010d, struct.pack("<IIIIIIIIII8I", 0, 0, WIDTH, HEIGHT, 0, 1, WIDTH, HEIGHT, 2, 0, WIDTH * 4, *[0] * 7))  # SET_SCANOUT_BLOB
        assert ok == 0x1100, "SET_SCANOUT_BLOB: %#x" % ok
        qmp = connect(tmp + "/qmp").makefile("rw")
        qmp.readline()
        for c in {"execute": "qmp_capabilities"}, {"execute": "screendump", "arguments": {"filename": tmp + "/screen.ppm"}}:
            qmp.write(json.dumps(c) + "\n"); qmp.flush()
            while True:
                answer = json.loads(qmp.readline())
                assert "error" not in answer, answer
                if "return" in answer:
                    break
        with open(tmp + "/screen.ppm", "rb") as f:
            head, data = f.read().split(b"\n255\n", 1)
        assert head.split()[1:] == [b"%d" % WIDTH, b"%d" % HEIGHT], head
        want = b"".join(bytes((picture[i + 2], picture[i + 1], picture[i])) for i in range(0, len(picture), 4))
        assert data == want, "the screen shows another picture"
        print("qemu: a blob resource of", len(pages), "scattered pages is on the screen, pixel by pixel")
    finally:
        qemu.kill()
        qemu.wait()
        for n in os.listdir(tmp):
            os.unlink(os.path.join(tmp, n))
        os.rmdir(tmp)

main()
