"""One rank of a communicator whose others may be Rust programs: NCCL by ctypes, as pynccl does it.

    RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \\
        python3 pynccl_rank.py [--id HOW] [--mode eager|graph] [--device N] [--nccl PATH]

The Rust side is examples/mixed_rank.rs, and scripts/mixed starts both, in every way there is. All ranks
join, sum one float, as pynccl does to warm up, and then three vectors: one after the other, or by
three launches of one captured graph. Each rank checks every sum, and prints one line.

Nothing but the standard library is needed. Where torch is, the id comes through its TCPStore; where it
has CUDA, memory, streams and graphs are its own, else those of the CUDA runtime.

--id HOW says how the unique id gets from rank 0, which makes it, to the others:
    store       through the store at MASTER_ADDR:MASTER_PORT, under the key "mixed/id". Rank 0 serves
                it, unless torchrun's agent does (TORCHELASTIC_USE_AGENT_STORE)
    serve       the same, and this rank serves the store, whichever it is. Needs torch
    file:PATH   as base64 in a file
    env:NAME    as base64 in a variable
    print       rank 0 prints it: a first line "id BASE64", for who starts the others
"""

import argparse
import array
import base64
import ctypes
import datetime
import glob
import os
import socket
import struct
import sys
import time
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p

PATIENCE = 60  # seconds, for each thing that another rank does
COUNT = 65_536
FLOAT32, SUM = 7, 0


# NCCL.


class UniqueId(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_byte * 128)]


class Nccl:
    """The functions that a rank needs; an error raises, with the library's words."""

    FUNCTIONS = {
        "ncclGetVersion": [POINTER(c_int)],
        "ncclGetUniqueId": [POINTER(UniqueId)],
        "ncclCommInitRank": [POINTER(c_void_p), c_int, UniqueId, c_int],
        "ncclAllReduce": [c_void_p, c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p],
        "ncclCommDestroy": [c_void_p],
    }

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.library.ncclGetErrorString.restype = c_char_p
        for name, arguments in self.FUNCTIONS.items():
            function = getattr(self.library, name)
            function.argtypes, function.restype = arguments, c_int

    def call(self, name, *arguments):
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name}: {self.library.ncclGetErrorString(code).decode()} ({code})")

    def version(self):
        code = c_int()
        self.call("ncclGetVersion", byref(code))
        return f"{code.value // 10000}.{code.value // 100 % 100}.{code.value % 100}"

    def unique_id(self):
        made = UniqueId()
        self.call("ncclGetUniqueId", byref(made))
        return bytes(made)

    def join(self, size, unique_id, rank):
        comm = c_void_p()
        made = UniqueId.from_buffer_copy(unique_id)
        self.call("ncclCommInitRank", byref(comm), size, made, rank)
        return comm

    def all_reduce(self, send, recv, count, comm, stream):
        self.call("ncclAllReduce", send, recv, count, FLOAT32, SUM, comm, stream)


# Memory, streams and graphs: of the CUDA runtime, or of torch. Both have the same methods.


class Cudart:
    name = "CUDA runtime"
    TO_DEVICE, TO_HOST = 1, 2
    NON_BLOCKING = 1
    THREAD_LOCAL = 1
    FUNCTIONS = {
        "cudaSetDevice": [c_int],
        "cudaMalloc": [POINTER(c_void_p), c_size_t],
        "cudaMemcpyAsync": [c_void_p, c_void_p, c_size_t, c_int, c_void_p],
        "cudaStreamCreateWithFlags": [POINTER(c_void_p), c_uint],
        "cudaStreamSynchronize": [c_void_p],
        "cudaStreamBeginCapture": [c_void_p, c_int],
        "cudaStreamEndCapture": [c_void_p, POINTER(c_void_p)],
        "cudaGraphInstantiate": [POINTER(c_void_p), c_void_p, c_ulonglong],  # as of CUDA 12
        "cudaGraphDestroy": [c_void_p],
        "cudaGraphLaunch": [c_void_p, c_void_p],
        "cudaGraphExecDestroy": [c_void_p],
    }

    def __init__(self, path, ordinal):
        self.library = open_cudart(path)
        self.library.cudaGetErrorString.restype = c_char_p
        for name, arguments in self.FUNCTIONS.items():
            function = getattr(self.library, name)
            function.argtypes, function.restype = arguments, c_int
        self.call("cudaSetDevice", ordinal)
        stream = c_void_p()
        self.call("cudaStreamCreateWithFlags", byref(stream), self.NON_BLOCKING)
        self.stream = stream.value

    def call(self, name, *arguments):
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name}: {self.library.cudaGetErrorString(code).decode()} ({code})")

    def zeros(self, count):
        """Memory for so many floats; it lives as long as the process."""
        memory = c_void_p()
        self.call("cudaMalloc", byref(memory), 4 * count)
        self.write(memory.value, array.array("f", bytes(4 * count)))
        return memory.value

    def pointer(self, memory):
        return memory

    def write(self, memory, values):
        address, count = values.buffer_info()
        self.call("cudaMemcpyAsync", memory, address, 4 * count, self.TO_DEVICE, self.stream)
        self.synchronize()

    def read(self, memory, count):
        values = array.array("f", bytes(4 * count))
        address, _ = values.buffer_info()
        self.call("cudaMemcpyAsync", address, memory, 4 * count, self.TO_HOST, self.stream)
        self.synchronize()
        return values

    def synchronize(self):
        self.call("cudaStreamSynchronize", self.stream)

    def capture(self, work):
        """What `work` enqueues, as something to launch; and what frees it."""
        graph, instance = c_void_p(), c_void_p()
        self.call("cudaStreamBeginCapture", self.stream, self.THREAD_LOCAL)
        work()
        self.call("cudaStreamEndCapture", self.stream, byref(graph))
        self.call("cudaGraphInstantiate", byref(instance), graph, 0)
        # The instance does not need it, and NCCL's destroy would wait for it for ever.
        self.call("cudaGraphDestroy", graph)

        def launch():
            self.call("cudaGraphLaunch", instance, self.stream)

        return launch, lambda: self.call("cudaGraphExecDestroy", instance)


def open_cudart(path):
    names = ["libcudart.so.13", "libcudart.so.12"]
    wheels = [f"{folder}/nvidia/*/lib/{name}" for folder in sys.path for name in names]
    candidates = [path] if path else names + [found for wheel in wheels for found in glob.glob(wheel)]
    reasons = []
    for candidate in candidates:
        try:
            return ctypes.CDLL(candidate)
        except OSError as error:
            reasons.append(str(error))
    raise RuntimeError(f"no CUDA runtime; give its file with --cudart: {'; '.join(reasons)}")


class Torch:
    name = "torch"

    def __init__(self, torch, ordinal):
        self.torch = torch
        self.device = torch.device("cuda", ordinal)
        torch.cuda.set_device(self.device)
        self.torch_stream = torch.cuda.Stream(self.device)
        self.stream = self.torch_stream.cuda_stream

    def zeros(self, count):
        with self.torch.cuda.stream(self.torch_stream):
            return self.torch.zeros(count, dtype=self.torch.float32, device=self.device)

    def pointer(self, memory):
        return memory.data_ptr()

    def write(self, memory, values):
        with self.torch.cuda.stream(self.torch_stream):
            memory.copy_(self.torch.frombuffer(values, dtype=self.torch.float32))
        self.synchronize()

    def read(self, memory, count):
        with self.torch.cuda.stream(self.torch_stream):
            return array.array("f", memory[:count].tolist())

    def synchronize(self):
        self.torch_stream.synchronize()

    def capture(self, work):
        graph = self.torch.cuda.CUDAGraph()
        mode = "thread_local"
        with self.torch.cuda.graph(graph, stream=self.torch_stream, capture_error_mode=mode):
            work()

        def launch():
            with self.torch.cuda.stream(self.torch_stream):
                graph.replay()

        return launch, graph.reset


# The store: torch's, or as much of its protocol as a rank without torch needs.


class Store:
    """A client of PyTorch's TCPStore, 2.2 or newer, or of the one in Rust."""

    VALIDATE, SET, GET, WAIT = 0, 1, 3, 6
    MAGIC = 0x3C85F7CE

    def __init__(self, host, port):
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.socket = socket.create_connection((host, port), timeout=PATIENCE)
                break
            except ConnectionError:
                # Whoever serves it is not there yet.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self.socket.sendall(struct.pack("<BI", self.VALIDATE, self.MAGIC))

    def set(self, key, value):
        self.socket.sendall(bytes([self.SET]) + self.text(self.key(key)) + self.text(value))

    def get(self, key):
        """Waits for the key."""
        wanted = self.text(self.key(key))
        self.socket.sendall(struct.pack("<BQ", self.WAIT, 1) + wanted)
        self.receive(1)
        self.socket.sendall(bytes([self.GET]) + wanted)
        (size,) = struct.unpack("<Q", self.receive(8))
        return self.receive(size)

    @staticmethod
    def key(key):
        return b"/" + key.encode()  # as torch puts it before its users' keys

    @staticmethod
    def text(value):
        return struct.pack("<Q", len(value)) + value

    def receive(self, size):
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise RuntimeError("the store closed the connection")
            data += part
        return data


def open_store(torch, serves):
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if torch:
        patience = datetime.timedelta(seconds=PATIENCE)
        return torch.distributed.TCPStore(
            host, port, is_master=serves, timeout=patience, wait_for_workers=False
        )
    if serves:
        raise RuntimeError("only torch can serve a store here; let the Rust rank do it")
    return Store(host, port)


def share_id(how, rank, make, torch):
    """The id, and what must live as long as others may ask for it."""
    if how in ("store", "serve"):
        served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "").lower() in ("1", "true")
        store = open_store(torch, how == "serve" or (rank == 0 and not served))
        if rank != 0:
            return store.get("mixed/id"), store
        made = make()
        store.set("mixed/id", made)
        return made, store
    kind, _, place = how.partition(":")
    if rank == 0:
        made = make()
        text = base64.b64encode(made).decode()
        if kind == "file":
            # All at once: who waits for the file finds all of it.
            with open(f"{place}.partial", "w") as file:
                file.write(text)
            os.rename(f"{place}.partial", place)
        else:
            print("id", text, flush=True)
        return made, None
    if kind == "file":
        deadline = time.monotonic() + PATIENCE
        while not os.path.exists(place):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{place} did not appear")
            time.sleep(0.01)
        with open(place) as file:
            text = file.read()
    else:
        text = os.environ[place]
    return base64.b64decode(text, validate=True), None


# What the ranks do.


def part(rank, step):
    """What a rank gives to a step: sums of these are exact."""
    return array.array("f", ((rank + 1) * (step + 1) + i % 7 for i in range(COUNT)))


def total(size, step):
    ranks = size * (size + 1) // 2
    return array.array("f", (ranks * (step + 1) + size * (i % 7) for i in range(COUNT)))


def expect(what, got, want):
    for i, (one, other) in enumerate(zip(got, want)):
        if one != other:
            raise RuntimeError(f"{what}: element {i} is {one}, want {other}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--id", default="store")
    parser.add_argument("--mode", choices=["eager", "graph"], default="eager")
    parser.add_argument("--device", type=int, default=int(os.environ.get("LOCAL_RANK", "0")))
    parser.add_argument("--nccl", default=os.environ.get("COLLECTIVES_NCCL_PATH", "libnccl.so.2"))
    parser.add_argument("--cudart", help="the CUDA runtime; found by itself otherwise")
    parser.add_argument("--without-torch", action="store_true", help="even where it is installed")
    options = parser.parse_args()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    torch = None
    if not options.without_torch:
        try:
            import torch
            import torch.distributed
        except ImportError:
            torch = None
    with_cuda = torch is not None and torch.cuda.is_available()
    device = (
        Torch(torch, options.device) if with_cuda else Cudart(options.cudart, options.device)
    )
    nccl = Nccl(options.nccl)
    unique_id, _store = share_id(options.id, rank, nccl.unique_id, torch)
    comm = nccl.join(size, unique_id, rank)

    # What every pynccl does first, so all others must.
    one = device.zeros(1)
    nccl.all_reduce(device.pointer(one), device.pointer(one), 1, comm, device.stream)
    device.synchronize()

    send, recv = device.zeros(COUNT), device.zeros(COUNT)

    def all_reduce():
        nccl.all_reduce(device.pointer(send), device.pointer(recv), COUNT, comm, device.stream)

    run, free = all_reduce, lambda: None
    if options.mode == "graph":
        run, free = device.capture(all_reduce)
    for step in range(3):
        device.write(send, part(rank, step))
        run()
        expect(f"step {step}", device.read(recv, COUNT), total(size, step))

    # NCCL wants its graphs gone before the communicator.
    free()
    nccl.call("ncclCommDestroy", comm)
    torchs = f"torch {torch.__version__}" if torch else "no torch"
    print(
        f"Python rank {rank} of {size}: {options.mode} sums are right; NCCL {nccl.version()}, "
        f"device {options.device}, {torchs}, memory of {device.name}, id by {options.id}"
    )


if __name__ == "__main__":
    main()
