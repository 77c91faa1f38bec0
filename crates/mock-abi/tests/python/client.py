"""A ctypes client of NCCL with ranks as processes and plain host memory.

It binds what SGLang's and vLLM's wrappers bind, by hand and with nothing but the standard library:

    python3 client.py LIBRARY [RANKS] [--maker-exits | --comm-id] [--poll]

Without more arguments it starts RANKS (4) copies of itself and hands them the unique id in an
environment variable, as a launcher would. `--maker-exits`: the process that made the id is gone
before the first rank starts. `--comm-id`: nobody hands an id on, each rank has it from NCCL_COMM_ID.
`--poll`: ranks look at their memory for results, and call nothing.
"""

import base64
import ctypes
import os
import struct
import subprocess
import sys
import time
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p

INT32, INT64, FLOAT32, FLOAT64 = 2, 4, 7, 8
SUM, PROD, MAX, MIN, AVG = range(5)


class UniqueId(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_byte * 128)]


comm_t, stream_t, window_t = c_void_p, c_void_p, c_void_p
buffer_t, dtype_t, op_t, result_t = c_void_p, c_int, c_int, c_int

FUNCTIONS = {
    "ncclGetVersion": [POINTER(c_int)],
    "ncclGetUniqueId": [POINTER(UniqueId)],
    "ncclCommInitRank": [POINTER(comm_t), c_int, UniqueId, c_int],
    "ncclAllReduce": [buffer_t, buffer_t, c_size_t, dtype_t, op_t, comm_t, stream_t],
    "ncclReduce": [buffer_t, buffer_t, c_size_t, dtype_t, op_t, c_int, comm_t, stream_t],
    "ncclAllGather": [buffer_t, buffer_t, c_size_t, dtype_t, comm_t, stream_t],
    "ncclReduceScatter": [buffer_t, buffer_t, c_size_t, dtype_t, op_t, comm_t, stream_t],
    "ncclSend": [buffer_t, c_size_t, dtype_t, c_int, comm_t, stream_t],
    "ncclRecv": [buffer_t, c_size_t, dtype_t, c_int, comm_t, stream_t],
    "ncclBroadcast": [buffer_t, buffer_t, c_size_t, dtype_t, c_int, comm_t, stream_t],
    "ncclCommDestroy": [comm_t],
    "ncclGroupStart": [],
    "ncclGroupEnd": [],
    "ncclCommWindowRegister": [comm_t, buffer_t, c_size_t, POINTER(window_t), c_int],
    "ncclCommWindowDeregister": [comm_t, window_t],
    "ncclMemAlloc": [POINTER(c_void_p), c_size_t],
    "ncclMemFree": [c_void_p],
    "ncclCommCount": [comm_t, POINTER(c_int)],
    "ncclCommUserRank": [comm_t, POINTER(c_int)],
    "ncclCommSplit": [comm_t, c_int, c_int, POINTER(comm_t), c_void_p],
}


class Nccl:
    """The functions above as methods, without their prefix; an error raises."""

    def __init__(self, path):
        library = ctypes.CDLL(path)
        library.ncclGetErrorString.restype = c_char_p
        library.ncclGetLastError.restype = c_char_p
        for name, arguments in FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, result_t
            setattr(self, name.removeprefix("nccl"), self.checked(library, name, function))

    @staticmethod
    def checked(library, name, function):
        def call(*arguments):
            code = function(*arguments)
            if code != 0:
                text = library.ncclGetErrorString(code).decode()
                last = library.ncclGetLastError(None).decode()
                raise RuntimeError(f"{name}: {code}, {text}: {last}")

        return call

    def version(self):
        code = c_int()
        self.GetVersion(byref(code))
        return code.value

    def unique_id(self):
        made = UniqueId()
        self.GetUniqueId(byref(made))
        return made


def rank_main(library, rank, size, polls):
    nccl = Nccl(library)
    comm = comm_t()
    if "NCCL_COMM_ID" in os.environ:
        # An address is good for more than one communicator.
        nccl.CommInitRank(byref(comm), size, nccl.unique_id(), rank)
        nccl.CommDestroy(comm)
        made = nccl.unique_id()
    else:
        made = UniqueId.from_buffer_copy(base64.b64decode(os.environ["CLIENT_ID"]))
    nccl.CommInitRank(byref(comm), size, made, rank)
    value = c_int()
    nccl.CommCount(comm, byref(value))
    expect("count", value.value, size)
    nccl.CommUserRank(comm, byref(value))
    expect("rank", value.value, rank)

    ranks = range(size)
    count = 1000
    ints = ctypes.c_int32 * count
    big = ctypes.c_int32 * (count * size)
    POISON = -(2**31)

    def poisoned(kind):
        return kind(*([POISON] * len(kind())))

    def mine(r=rank):
        return [r * 10000 + i for i in range(count)]

    def flush():
        """Waits for what was enqueued, by a collective whose result only comes behind it."""
        one, all_ = ctypes.c_int32(1), ctypes.c_int32(POISON)
        nccl.AllReduce(byref(one), byref(all_), 1, INT32, SUM, comm, None)
        wait(lambda: all_.value == size)

    def wait(done):
        deadline = time.monotonic() + 30
        while not done():
            if time.monotonic() > deadline:
                raise RuntimeError(f"rank {rank}: the result never came")
            time.sleep(0.0001 if polls else 0)

    send, recv = ints(*mine()), poisoned(ints)
    nccl.AllReduce(send, recv, count, INT32, SUM, comm, None)
    wait(lambda: recv[count - 1] != POISON)
    flush()
    expect("AllReduce", list(recv), [sum(mine(r)[i] for r in ranks) for i in range(count)])

    for op, combine in ((PROD, None), (MAX, max), (MIN, min)):
        send64, recv64 = ctypes.c_int64(rank + 2), ctypes.c_int64(-1)
        nccl.AllReduce(byref(send64), byref(recv64), 1, INT64, op, comm, None)
        flush()
        values = [r + 2 for r in ranks]
        product = 1
        for v in values:
            product *= v
        expect(f"operator {op}", recv64.value, combine(values) if combine else product)

    average, result = ctypes.c_double(rank), ctypes.c_double(-1)
    nccl.AllReduce(byref(average), byref(result), 1, FLOAT64, AVG, comm, None)
    flush()
    expect("average", result.value, sum(r / size for r in ranks))

    recv = poisoned(ints)
    nccl.Reduce(send, recv, count, INT32, SUM, size - 1, comm, None)
    flush()
    if rank == size - 1:
        expect("Reduce", list(recv), [sum(mine(r)[i] for r in ranks) for i in range(count)])

    recv = poisoned(big)
    nccl.AllGather(send, recv, count, INT32, comm, None)
    flush()
    expect("AllGather", list(recv), [v for r in ranks for v in mine(r)])

    scattered = big(*[rank + i for i in range(count * size)])
    recv = poisoned(ints)
    nccl.ReduceScatter(scattered, recv, count, INT32, SUM, comm, None)
    flush()
    total = sum(ranks)
    want = [total + size * (rank * count + i) for i in range(count)]
    expect("ReduceScatter", list(recv), want)

    recv = poisoned(ints)
    nccl.Broadcast(send, recv, count, INT32, 1 % size, comm, None)
    flush()
    expect("Broadcast", list(recv), mine(1 % size))

    recv = poisoned(ints)
    nccl.GroupStart()
    nccl.Send(send, count, INT32, (rank + 1) % size, comm, None)
    nccl.Recv(recv, count, INT32, (rank - 1) % size, comm, None)
    nccl.GroupEnd()
    flush()
    expect("ring", list(recv), mine((rank - 1) % size))

    # More than a page, so that private memory has to travel.
    large = 1 << 20
    floats = ctypes.c_float * large
    send, recv = floats(*([float(rank)] * large)), floats(*([-1.0] * large))
    nccl.AllReduce(send, recv, large, FLOAT32, SUM, comm, None)
    flush()
    want = float(sum(ranks))
    expect("a large AllReduce", all(v == want for v in recv), True)

    window, memory = window_t(), c_void_p()
    nccl.MemAlloc(byref(memory), 4096)
    nccl.CommWindowRegister(comm, memory, 4096, byref(window), 1)
    expect("a window", bool(window), True)
    place = (ctypes.c_int32 * 1).from_address(memory.value)
    place[0] = rank
    nccl.AllReduce(memory, memory, 1, INT32, SUM, comm, None)
    flush()
    expect("memory of MemAlloc", place[0], sum(ranks))
    nccl.CommWindowDeregister(comm, window)
    nccl.MemFree(memory)

    half = comm_t()
    nccl.CommSplit(comm, rank % 2, 0, byref(half), None)
    one, all_ = ctypes.c_int32(1), ctypes.c_int32(POISON)
    nccl.AllReduce(byref(one), byref(all_), 1, INT32, SUM, half, None)
    wait(lambda: all_.value != POISON)
    expect("a half", all_.value, len([r for r in ranks if r % 2 == rank % 2]))
    nccl.CommDestroy(half)

    nccl.CommDestroy(comm)
    # In one piece, as other ranks write to the same place.
    sys.stdout.write(f"rank {rank} of {size}: all good\n")


def expect(name, got, want):
    if got != want:
        raise RuntimeError(f"{name}: got {str(got)[:200]}, want {str(want)[:200]}")


def main():
    flags = [argument for argument in sys.argv[1:] if argument.startswith("--")]
    plain = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    library, size = plain[0], int(plain[1]) if len(plain) > 1 else 4
    again = [sys.executable, __file__, library, str(size), *flags]
    if "CLIENT_RANK" in os.environ:
        return rank_main(library, int(os.environ["CLIENT_RANK"]), size, "--poll" in flags)
    if "CLIENT_MAKER" in os.environ:
        print(base64.b64encode(bytes(Nccl(library).unique_id())).decode())
        return
    environment = dict(os.environ)
    if "--comm-id" in flags:
        # The launcher's process number stands for the port, so that two runs do not meet.
        environment["NCCL_COMM_ID"] = f"127.0.0.1:{1024 + os.getpid() % 60000}"
        made = ""
    elif "--maker-exits" in flags:
        maker = dict(os.environ, CLIENT_MAKER="1")
        made = subprocess.run(again, env=maker, check=True, stdout=subprocess.PIPE, text=True)
        made = made.stdout.strip()
    else:
        made = base64.b64encode(bytes(Nccl(library).unique_id())).decode()
    ranks = []
    for rank in range(size):
        own = dict(environment, CLIENT_ID=made, CLIENT_RANK=str(rank))
        ranks.append(subprocess.Popen(again, env=own))
    codes = [rank.wait(120) for rank in ranks]
    if any(codes):
        sys.exit(f"exit codes {codes}")


if __name__ == "__main__":
    main()
