"""What our NCCL backend is compared with: torch.distributed over NCCL, as Python programs use it.

    python3 benches/peers/torch_nccl.py all_reduce -n 2 [-b BYTES] [-e BYTES] [--graph]

Each call is PyTorch's plain one (`async_op=False`, which for NCCL enqueues and returns), on tensors
that are made before. PyTorch has all_reduce, broadcast and reduce in place only: hold those against
in-place figures. gather, scatter and send_recv are sends and receives within NCCL, as in PyTorch
itself; a send_recv makes its pair of `P2POp`s for each call, as the documentation shows it.
"""

import functools
import os

import torch
import torch.distributed as dist

import peer


class TorchNccl(peer.Library):
    in_place = ("all_reduce", "broadcast", "reduce")

    def __init__(self, args, rank, shared):
        self.ranks, self.rank = args.ranks, rank
        dist.init_process_group(
            "nccl",
            init_method=f"file://{os.path.join(shared.folder, 'ranks')}",
            rank=rank,
            world_size=args.ranks,
            device_id=torch.device("cuda", rank),
        )

    def name(self):
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        return f"PyTorch {torch.__version__}, NCCL {nccl}"

    # PyTorch enqueues on the current stream, which is `stream`.
    def call(self, operation, send, recv, stream):
        is_root = self.rank == peer.ROOT
        if operation == "all_reduce":
            return functools.partial(dist.all_reduce, recv)
        if operation == "all_gather":
            return functools.partial(dist.all_gather_into_tensor, recv, send)
        if operation == "reduce_scatter":
            return functools.partial(dist.reduce_scatter_tensor, recv, send)
        if operation == "broadcast":
            return functools.partial(dist.broadcast, recv, src=peer.ROOT)
        if operation == "reduce":
            return functools.partial(dist.reduce, recv, dst=peer.ROOT)
        if operation == "all_to_all":
            return functools.partial(dist.all_to_all_single, recv, send)
        if operation == "gather":
            parts = list(recv.chunk(self.ranks)) if is_root else None
            return functools.partial(dist.gather, send, parts, dst=peer.ROOT)
        if operation == "scatter":
            parts = list(send.chunk(self.ranks)) if is_root else None
            return functools.partial(dist.scatter, recv, parts, src=peer.ROOT)
        return functools.partial(self.send_recv, send, recv)

    def send_recv(self, send, recv):
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, send, (self.rank + 1) % self.ranks),
                dist.P2POp(dist.irecv, recv, (self.rank - 1) % self.ranks),
            ]
        )
        for work in works:
            work.wait()

    def close(self):
        dist.destroy_process_group()


if __name__ == "__main__":
    peer.main(TorchNccl, __doc__)
