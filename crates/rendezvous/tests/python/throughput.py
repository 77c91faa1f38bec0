"""Our server and PyTorch's two, with the same client, on this machine: how fast, and at what cost.

    python3 throughput.py PATH/tcp_store [SECONDS] [ROUNDS]

`tcp_store` is the example of this crate, built with --release. Each round takes the servers in turn,
SECONDS for each operation and number of clients, so that whatever else the machine does meets all of
them; what is compared is the ratio within a round. Figures are medians of the rounds. Rates need a
quiet machine; ratios, and the processor time that a server takes for a query, hardly do.
"""

import contextlib
import datetime
import os
import platform
import statistics
import subprocess
import sys

import torch

SERVE = """
import datetime, sys
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, None, True, datetime.timedelta(seconds=60),
                 wait_for_workers=False, use_libuv=sys.argv[1] == "libuv")
print(f"127.0.0.1:{store.port}", flush=True)
sys.stdin.read()
"""
CLIENTS = [1, 8, 64]
# A set is acknowledged by a second query, a get waits first.
QUERIES = {"set": 2, "add": 1, "get": 2}


def processor_time(pid):
    """What a process has used, in seconds."""
    with open(f"/proc/{pid}/schedstat") as file:
        main = int(file.read().split()[0])
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError):
            with open(f"/proc/{pid}/task/{task}/schedstat") as file:
                total += int(file.read().split()[0])
    return max(total, main) / 1e9


@contextlib.contextmanager
def serving(command):
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield server.pid, server.stdout.readline().strip()
    finally:
        server.kill()
        server.wait()


def measure(program, address, clients, seconds):
    """How often each operation was done, and how often in a second."""
    bench = [program, "bench", address, str(clients), seconds]
    output = subprocess.run(bench, check=True, stdout=subprocess.PIPE, text=True).stdout
    lines = [line.split() for line in output.splitlines()]
    return {operation: (int(count), float(rate)) for operation, count, rate in lines}


def main():
    program = sys.argv[1]
    seconds = sys.argv[2] if len(sys.argv) > 2 else "0.5"
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 15
    version = torch.__version__.split("+")[0]
    servers = {
        "ours": [program, "serve", "127.0.0.1:0"],
        "libuv": [sys.executable, "-c", SERVE, "libuv"],
        "plain": [sys.executable, "-c", SERVE, "plain"],
    }
    rates, costs = {}, {}
    with contextlib.ExitStack() as stack:
        addresses = {
            server: stack.enter_context(serving(command)) for server, command in servers.items()
        }
        for number in range(rounds):
            # Who is first in a round, is last in the next but one.
            order = list(addresses.items())
            order = order[number % len(order) :] + order[: number % len(order)]
            for clients in CLIENTS:
                for server, (pid, address) in order:
                    before = processor_time(pid)
                    done = measure(program, address, clients, seconds)
                    queries = sum(QUERIES[name] * count for name, (count, _) in done.items())
                    cost = (processor_time(pid) - before) / queries
                    costs.setdefault((clients, server), []).append(cost)
                    for name, (_, rate) in done.items():
                        rates.setdefault((name, clients, server), []).append(rate)
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)

    load = os.getloadavg()[0]
    print(
        f"{datetime.date.today()}, {rounds} rounds of {seconds} s, PyTorch {version}, "
        f"{os.cpu_count()} cores ({platform.machine()}), load {load:.1f} in the last minute\n"
    )
    print("| operation | clients | ours, a second | over libuv | over plain |")
    print("|---|---:|---:|---|---|")
    for name in QUERIES:
        for clients in CLIENTS:
            ours = rates[name, clients, "ours"]
            row = [f"{statistics.median(ours):,.0f}"]
            row += [ratios(ours, rates[name, clients, other]) for other in ("libuv", "plain")]
            print(f"| `{name}` | {clients} | {' | '.join(row)} |")
    print("\nprocessor time of the server for a query\n")
    print("| clients | ours, µs | over libuv | over plain |")
    print("|---:|---:|---|---|")
    for clients in CLIENTS:
        ours = costs[clients, "ours"]
        row = [f"{statistics.median(ours) * 1e6:.1f}"]
        row += [ratios(ours, costs[clients, other]) for other in ("libuv", "plain")]
        print(f"| {clients} | {' | '.join(row)} |")


def ratios(ours, theirs):
    """The median of the rounds' ratios, and the middle half of them."""
    each = [one / other for one, other in zip(ours, theirs)]
    low, middle, high = statistics.quantiles(each, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
