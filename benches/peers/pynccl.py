"""What our NCCL backend is compared with: NCCL called from Python through ctypes.

    python3 benches/peers/pynccl.py all_reduce -n 2 [-b BYTES] [-e BYTES] [--graph] [--lib PATH]

Inference engines call NCCL so, to get around torch.distributed, above all in CUDA graphs. Their
wrappers take tensors and a stream, read pointer, length and type of the tensors for each call, call
NCCL, and raise where it refuses; so does this one. Memory is PyTorch's, because that is what such a
wrapper is given, and because `torch.cuda.graph` captures on PyTorch's streams; nothing else of
PyTorch is between the call and NCCL.

all_to_all, gather, scatter and send_recv are sends and receives in a group. NCCL 2.28 and newer
have functions for the first three, which such wrappers do not use.
"""

import ctypes
import functools

import torch

import peer


class UniqueId(ctypes.Structure):
    """`ncclUniqueId`, which goes to NCCL by value."""

    _fields_ = [("internal", ctypes.c_char * 128)]


class Nccl:
    """The library: its functions by name, each of which raises where NCCL refuses."""

    def __init__(self, path):
        self._library = ctypes.CDLL(path)
        self._library.ncclGetErrorString.argtypes = [ctypes.c_int]
        self._library.ncclGetErrorString.restype = ctypes.c_char_p
        pointer, size, integer = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        for name, arguments in {
            "ncclGetVersion": [ctypes.POINTER(integer)],
            "ncclGetUniqueId": [ctypes.POINTER(UniqueId)],
            "ncclCommInitRank": [ctypes.POINTER(pointer), integer, UniqueId, integer],
            "ncclCommDestroy": [pointer],
            "ncclGroupStart": [],
            "ncclGroupEnd": [],
            # send, recv, count, type, op, comm, stream
            "ncclAllReduce": [pointer, pointer, size, integer, integer, pointer, pointer],
            "ncclReduceScatter": [pointer, pointer, size, integer, integer, pointer, pointer],
            # send, recv, count, type, comm, stream
            "ncclAllGather": [pointer, pointer, size, integer, pointer, pointer],
            # send, recv, count, type, root, comm, stream
            "ncclBroadcast": [pointer, pointer, size, integer, integer, pointer, pointer],
            # send, recv, count, type, op, root, comm, stream
            "ncclReduce": [pointer, pointer, size, integer, integer, integer, pointer, pointer],
            # buffer, count, type, peer, comm, stream
            "ncclSend": [pointer, size, integer, integer, pointer, pointer],
            "ncclRecv": [pointer, size, integer, integer, pointer, pointer],
        }.items():
            function = getattr(self._library, name)
            function.argtypes = arguments
            function.restype = integer
            setattr(self, name, functools.partial(self._checked, name, function))

    def _checked(self, name, function, *arguments):
        code = function(*arguments)
        if code != 0:
            text = self._library.ncclGetErrorString(code).decode()
            raise RuntimeError(f"{name}: {text} (code {code}); NCCL_DEBUG=WARN says more")


class Communicator:
    """One rank of a communicator, with the operations of tensors."""

    def __init__(self, nccl, ranks, rank, identifier):
        self.nccl, self.ranks, self.rank = nccl, ranks, rank
        self.handle = ctypes.c_void_p()
        nccl.ncclCommInitRank(ctypes.byref(self.handle), ranks, identifier, rank)

    def all_reduce(self, send, recv, stream):
        self.nccl.ncclAllReduce(
            send.data_ptr(),
            recv.data_ptr(),
            send.numel(),
            TYPES[send.dtype],
            SUM,
            self.handle,
            stream.cuda_stream,
        )

    def all_gather(self, send, recv, stream):
        self.nccl.ncclAllGather(
            send.data_ptr(),
            recv.data_ptr(),
            send.numel(),
            TYPES[send.dtype],
            self.handle,
            stream.cuda_stream,
        )

    def reduce_scatter(self, send, recv, stream):
        self.nccl.ncclReduceScatter(
            send.data_ptr(),
            recv.data_ptr(),
            recv.numel(),
            TYPES[send.dtype],
            SUM,
            self.handle,
            stream.cuda_stream,
        )

    def broadcast(self, send, recv, root, stream):
        self.nccl.ncclBroadcast(
            send.data_ptr(),
            recv.data_ptr(),
            send.numel(),
            TYPES[send.dtype],
            root,
            self.handle,
            stream.cuda_stream,
        )

    def reduce(self, send, recv, root, stream):
        self.nccl.ncclReduce(
            send.data_ptr(),
            recv.data_ptr(),
            send.numel(),
            TYPES[send.dtype],
            SUM,
            root,
            self.handle,
            stream.cuda_stream,
        )

    def send(self, tensor, to, stream):
        self.nccl.ncclSend(
            tensor.data_ptr(),
            tensor.numel(),
            TYPES[tensor.dtype],
            to,
            self.handle,
            stream.cuda_stream,
        )

    def recv(self, tensor, source, stream):
        self.nccl.ncclRecv(
            tensor.data_ptr(),
            tensor.numel(),
            TYPES[tensor.dtype],
            source,
            self.handle,
            stream.cuda_stream,
        )

    def exchange(self, sends, recvs, stream):
        """Sends and receives of (tensor, peer), all in one group."""
        self.nccl.ncclGroupStart()
        for tensor, to in sends:
            self.send(tensor, to, stream)
        for tensor, source in recvs:
            self.recv(tensor, source, stream)
        self.nccl.ncclGroupEnd()

    def destroy(self):
        self.nccl.ncclCommDestroy(self.handle)


class PyNccl(peer.Library):
    @staticmethod
    def add_arguments(parser):
        # By this name the library that PyTorch has loaded is found.
        parser.add_argument("--lib", default="libnccl.so.2", help="which libnccl to load")

    def __init__(self, args, rank, shared):
        self.nccl = Nccl(args.lib)
        identifier = UniqueId()
        if rank == peer.ROOT:
            self.nccl.ncclGetUniqueId(ctypes.byref(identifier))
            ctypes.memmove(shared.identifier, ctypes.byref(identifier), 128)
        shared.meet(rank)
        ctypes.memmove(ctypes.byref(identifier), shared.identifier, 128)
        self.comm = Communicator(self.nccl, args.ranks, rank, identifier)

    def name(self):
        version = ctypes.c_int()
        self.nccl.ncclGetVersion(ctypes.byref(version))
        major, rest = divmod(version.value, 10_000)
        return f"NCCL {major}.{rest // 100}.{rest % 100} through ctypes"

    def call(self, operation, send, recv, stream):
        comm, root = self.comm, peer.ROOT
        is_root = comm.rank == root
        if operation in ("all_reduce", "all_gather", "reduce_scatter"):
            return functools.partial(getattr(comm, operation), send, recv, stream)
        if operation in ("broadcast", "reduce"):
            return functools.partial(getattr(comm, operation), send, recv, root, stream)
        if operation == "all_to_all":
            sends, recvs = numbered(send, comm.ranks), numbered(recv, comm.ranks)
        elif operation == "gather":
            sends, recvs = [(send, root)], numbered(recv, comm.ranks) if is_root else []
        elif operation == "scatter":
            sends, recvs = numbered(send, comm.ranks) if is_root else [], [(recv, root)]
        else:
            sends = [(send, (comm.rank + 1) % comm.ranks)]
            recvs = [(recv, (comm.rank - 1) % comm.ranks)]
        return functools.partial(comm.exchange, sends, recvs, stream)

    def close(self):
        self.comm.destroy()


def numbered(tensor, ranks):
    """The parts of a tensor, each with the rank that it goes to or comes from."""
    return [(part, number) for number, part in enumerate(tensor.chunk(ranks))]


# `ncclDataType_t` and `ncclRedOp_t`.
TYPES = {
    torch.int8: 0,
    torch.uint8: 1,
    torch.int32: 2,
    torch.int64: 4,
    torch.float16: 6,
    torch.float32: 7,
    torch.float64: 8,
    torch.bfloat16: 9,
}
SUM = 0


if __name__ == "__main__":
    peer.main(PyNccl, __doc__)
