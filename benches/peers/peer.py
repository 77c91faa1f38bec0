"""What the GPU programs share: the command line, the ranks, sizes, data, timing and output.

The time is taken as `collectives perf` and nccl-tests take it: all sizes are warmed up, doubled
from the smallest; then, for each size, one operation and a wait, the ranks meet, and the clock runs
over a loop of operations and one wait (or with `--sync-each` a wait after each; or with `--graph`
over the one launch of a graph that holds the loop). A time is the mean of the ranks' clocks,
divided by the iterations. Successive operations move on through buffers of the largest size. Sizes,
shapes and the rule for iterations are perf's (crates/collectives-cli/src/perf).

Ranks are processes, since both programs measure what Python programs do, and threads of one Python
process would share its lock.
"""

import argparse
import gc
import itertools
import sys
import tempfile
import time

import torch
import torch.multiprocessing

OPERATIONS = (
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "broadcast",
    "reduce",
    "all_to_all",
    "gather",
    "scatter",
    "send_recv",
)
ROOT = 0
ELEMENT = 4  # bytes of float32

# The largest buffer of an operation among these holds one part for each rank.
HAS_PARTS = ("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter")
# Where the result of an operation among these stands, if anywhere, is the root.
RESULT_AT_ROOT = ("reduce", "gather")


class Library:
    """What is measured; each program derives its own. It is made in the process of each rank."""

    # Operations that have their input and their result in one place: `recv`.
    in_place = ()

    @staticmethod
    def add_arguments(parser):
        """Adds what only this library needs to the command line."""

    def __init__(self, args, rank, shared):
        """Joins the ranks. The device is chosen already."""

    def name(self):
        """Which library, in which version."""
        raise NotImplementedError

    def call(self, operation, send, recv, stream):
        """A function that enqueues the operation on these tensors, on `stream`, each time it is
        called. What a program would make once for its tensors is made here; what it would do for
        each call, the function does."""
        raise NotImplementedError

    def close(self):
        """Takes leave."""


def main(library, description):
    """Runs a program that measures `library`, a subclass of `Library`."""
    args = parse(library, description)
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        shared = Shared(context, args.ranks, folder)
        try:
            torch.multiprocessing.spawn(run_rank, (library, args, shared), nprocs=args.ranks)
        except torch.multiprocessing.ProcessExitedException as error:
            sys.exit(error.exit_code if error.exit_code > 0 else 4)
        except torch.multiprocessing.ProcessRaisedException as error:
            print(error, file=sys.stderr)
            sys.exit(4)


def parse(library, description):
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("operation", choices=OPERATIONS)
    parser.add_argument("-n", dest="ranks", type=int, help="ranks, one GPU each (default: all)")
    parser.add_argument("-b", dest="min", type=int, default=8, help="smallest size in bytes")
    parser.add_argument("-e", dest="max", type=int, default=1 << 30, help="largest size in bytes")
    parser.add_argument("--sync-each", action="store_true", help="wait for each operation")
    parser.add_argument("--graph", action="store_true", help="all iterations in one CUDA graph")
    parser.add_argument("--iters", type=int, help="operations of each size (default: by size)")
    parser.add_argument("--warmup", type=int, help="operations before (default: a tenth, or 5)")
    parser.add_argument("--no-check", action="store_true", help="do not check the results")
    library.add_arguments(parser)
    args = parser.parse_args()

    devices = torch.cuda.device_count()
    args.ranks = devices if args.ranks is None else args.ranks
    if not 2 <= args.ranks <= devices:
        parser.error(f"-n {args.ranks}: want at least 2 ranks, and there are {devices} GPUs")
    if not 1 <= args.min <= args.max:
        parser.error(f"-b {args.min} -e {args.max}: want 1 <= MIN <= MAX")
    if args.sync_each and args.graph:
        parser.error("--sync-each and --graph: a graph is waited for once")
    if args.iters is not None and args.iters < 1:
        parser.error(f"--iters {args.iters}: want at least 1")
    return args


class Shared:
    """What the processes share, beside GPUs."""

    def __init__(self, context, ranks, folder):
        self.ranks = ranks
        self.folder = folder
        self.times = context.RawArray("d", 2 * ranks)
        self.identifier = context.RawArray("c", 128)
        self._arrivals = context.RawArray("Q", self.LINE * ranks)

    def meet(self, rank):
        """Waits until every rank is here. Spins, so that all leave within about a microsecond."""
        arrivals, line = self._arrivals, self.LINE
        arrivals[rank * line] += 1
        arrived = arrivals[rank * line]
        for peer in range(self.ranks):
            # Should a rank fail, the parent ends the others.
            while arrivals[peer * line] < arrived:
                pass

    # Counters from one to the next, so that each has cache lines of its own.
    LINE = 16


def run_rank(rank, library, args, shared):
    """The main function of each process."""
    torch.cuda.set_device(rank)
    worker = Worker(library(args, rank, shared), args, rank, shared)
    worker.run()
    worker.close()


class Worker:
    """One rank, and everything it makes once."""

    def __init__(self, library, args, rank, shared):
        self.library, self.args, self.rank, self.shared = library, args, rank, shared
        self.counts = list(counts(args))
        # Not that of the last count: -e need not be a doubling of -b.
        self.largest = largest(args, count_of(args, args.max))
        self.in_place = args.operation in library.in_place

        needed, (free, _) = 2 * ELEMENT * self.largest + SCRATCH, torch.cuda.mem_get_info()
        if needed > free:
            print(
                f"-e {args.max}: rank {rank} needs {needed >> 20} MiB, and {free >> 20} MiB of its"
                " GPU are free",
                file=sys.stderr,
            )
            sys.exit(2)
        self.send = torch.empty(self.largest, dtype=torch.float32, device="cuda")
        self.recv = torch.zeros_like(self.send)
        fill(self.send, rank)
        self.stream = torch.cuda.Stream()
        torch.cuda.synchronize()

    def run(self):
        if self.rank == ROOT:
            self.print_settings()
        with torch.cuda.stream(self.stream):
            self.prepare(self.largest)
            for count in self.counts:
                times = self.args.warmup
                times = max(self.iterations(count) // 10, 5) if times is None else times
                for call in self.calls(count, times):
                    call()
                self.stream.synchronize()
            for count in self.counts:
                if not self.args.no_check:
                    self.check(count)
                self.measure(count)

    def measure(self, count):
        args, shared, stream = self.args, self.shared, self.stream
        times = self.iterations(count)
        # Sums in place grow with each operation; infinities may be treated otherwise than data.
        self.prepare(self.largest)
        calls = list(self.calls(count, times))
        calls[0]()
        stream.synchronize()
        graph = self.capture(calls) if args.graph else None
        gc.collect()
        gc.disable()
        shared.meet(self.rank)
        if graph is not None:
            start = time.perf_counter()
            graph.replay()
            issued = time.perf_counter()
            stream.synchronize()
            end = time.perf_counter()
        elif args.sync_each:
            start = time.perf_counter()
            for call in calls:
                call()
                stream.synchronize()
            issued = end = time.perf_counter()
        else:
            start = time.perf_counter()
            for call in calls:
                call()
            issued = time.perf_counter()
            stream.synchronize()
            end = time.perf_counter()
        gc.enable()
        shared.times[2 * self.rank] = (end - start) / times
        shared.times[2 * self.rank + 1] = (issued - start) / times
        # What comes next takes no time from ranks that still measure.
        shared.meet(self.rank)
        if self.rank == ROOT:
            microseconds = [sum(shared.times[i::2]) / args.ranks * 1e6 for i in (0, 1)]
            columns = microseconds[:1] if args.sync_each else microseconds
            size = largest(args, count) * ELEMENT
            print(size, *(f"{column:.3f}" for column in columns), flush=True)
        shared.meet(self.rank)

    def check(self, count):
        """Runs the operation once on known inputs; ends the program if its result is wrong."""
        args, rank = self.args, self.rank
        self.recv[: largest(args, count)] = float("nan")
        self.prepare(count)
        call = next(self.calls(count, 1))
        # A rank that sends must not meet one that still clears.
        self.stream.synchronize()
        self.shared.meet(rank)
        graph = self.capture([call]) if args.graph else None
        run = call if graph is None else graph.replay
        run()
        self.stream.synchronize()
        if args.operation in RESULT_AT_ROOT and rank != ROOT:
            return
        for at, sources, source_at in sources_of(args.operation, args.ranks, rank, count):
            for first in range(0, count, PIECE):
                size = min(count - first, PIECE)
                want = sum(noise(source, source_at + first, size) for source in sources)
                result = self.recv[at + first : at + first + size]
                wrong = int((result != want).sum())
                if wrong > 0:
                    print(
                        f"{args.operation}, rank {rank} of {args.ranks}, {count} elements a part:"
                        f" {wrong} of the {size} elements from {at + first} on are wrong",
                        file=sys.stderr,
                    )
                    sys.exit(1)

    def prepare(self, count):
        """Where the operation works in place, puts the input there."""
        if self.in_place and (self.args.operation != "broadcast" or self.rank == ROOT):
            fill(self.recv[:count], self.rank)

    def calls(self, count, times):
        """The operation so many times, each at its place in the buffers."""
        args = self.args
        stride = largest(args, count)
        send, recv = lengths(args, count)
        places = self.largest // stride
        made = [
            self.library.call(
                args.operation, self.send[at : at + send], self.recv[at : at + recv], self.stream
            )
            for at in range(0, min(places, times) * stride, stride)
        ]
        return itertools.islice(itertools.cycle(made), times)

    def capture(self, calls):
        graph = torch.cuda.CUDAGraph()
        # Only this thread's calls are forbidden what breaks a capture: PyTorch and NCCL have
        # threads of their own, which ask after events.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            for call in calls:
                call()
        return graph

    def iterations(self, count):
        """As many as perf: about 20 GiB, and 20 to 200."""
        if self.args.iters is not None:
            return self.args.iters
        return min(max((20 << 30) // (largest(self.args, count) * ELEMENT), 20), 200)

    def print_settings(self):
        args = self.args
        mode = "graph" if args.graph else "sync-each" if args.sync_each else "loop"
        settings = {
            "library": self.library.name(),
            "device": torch.cuda.get_device_name(),
            "operation": args.operation,
            "ranks": args.ranks,
            "mode": mode,
            "placement": "in place" if self.in_place else "out of place",
            "columns": "bytes us" if args.sync_each else "bytes us issue_us",
        }
        for key, value in settings.items():
            print(f"# {key}: {value}")
        sys.stdout.flush()

    def close(self):
        self.library.close()


def counts(args):
    """Elements of a part, for each size; sizes that come to the same are measured once."""
    size, previous = args.min, None
    while size <= args.max:
        count = count_of(args, size)
        if count != previous:
            yield count
        size, previous = 2 * size, count


def count_of(args, size):
    """Parts are rounded down to 16 bytes, as in nccl-tests, so that all start aligned. What would
    be less is not rounded, and at least one element."""
    if args.operation in HAS_PARTS:
        size //= args.ranks
        size = size if size < 16 else size & ~15
    return max(size // ELEMENT, 1)


def largest(args, count):
    """Elements of the largest buffer of any rank: what is called the size."""
    return count * args.ranks if args.operation in HAS_PARTS else count


def lengths(args, count):
    """Elements of input and result."""
    whole = largest(args, count)
    send = count if args.operation in ("all_gather", "gather") else whole
    recv = count if args.operation in ("reduce_scatter", "scatter") else whole
    return send, recv


def sources_of(operation, ranks, rank, count):
    """What the result of `rank` is made of: for each part, where it stands, of which ranks' inputs
    it is the sum, and where in them that stands."""
    own, everyone = rank * count, range(ranks)
    if operation in ("all_reduce", "reduce"):
        return [(0, everyone, 0)]
    if operation == "reduce_scatter":
        return [(0, everyone, own)]
    if operation in ("all_gather", "gather"):
        return [(peer * count, [peer], 0) for peer in everyone]
    if operation == "all_to_all":
        return [(peer * count, [peer], own) for peer in everyone]
    if operation == "broadcast":
        return [(0, [ROOT], 0)]
    if operation == "scatter":
        return [(0, [ROOT], own)]
    return [(0, [(rank - 1) % ranks], 0)]


def noise(rank, first, size):
    """What `rank` has from `first` on: small integers, so that sums of many ranks are exact in any
    order; noise, so that an element that is lost, doubled or misplaced shows."""
    index = torch.arange(first, first + size, dtype=torch.int64, device="cuda")
    mixed = index * 0x9E3779B1 + rank * 0x85EBCA77
    mixed ^= mixed >> 15
    mixed *= 0x2C1B3C6D
    return ((mixed >> 20) & 0xFFFF).to(torch.float32)


def fill(tensor, rank):
    for first in range(0, len(tensor), PIECE):
        piece = tensor[first : first + PIECE]
        piece.copy_(noise(rank, first, len(piece)))


# Elements that are made and checked at once.
PIECE = 1 << 24
# Memory that making and checking needs beside the buffers.
SCRATCH = 1 << 30
