"""Our server and PyTorch's two, with the same clients, on this machine: how fast, and at what cost.

    python3 throughput.py PATH/tcp_store [SECONDS] [ROUNDS]

`tcp_store` is the example of this crate, built with --release. In a round each server has a turn of
SECONDS, for each operation and number of clients; turns are short, so that whatever else the machine
does meets all of them. What is compared is the ratio within a round. Rates need a quiet machine, and
ratios many rounds; the processor time that a server takes for a query needs neither.
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
    """What the threads of a process have used, in seconds."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as file:
            total += int(file.read().split()[0])
    return total / 1e9


@contextlib.contextmanager
def serving(command):
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield server.pid, server.stdout.readline().strip()
    finally:
        server.kill()
        server.wait()


def measure(program, clients, seconds, rounds, addresses):
    """The rates of each operation and server, turn by turn, and how many queries a server had."""
    bench = [program, "bench", str(clients), seconds, str(rounds), *addresses]
    output = subprocess.run(bench, check=True, stdout=subprocess.PIPE, text=True).stdout
    rates, queries = {}, [0] * len(addresses)
    for line in output.splitlines():
        name, server, count, took = line.split()
        rates.setdefault((name, int(server)), []).append(int(count) / float(took))
        queries[int(server)] += QUERIES[name] * int(count)
    return rates, queries


def main():
    program = sys.argv[1]
    seconds = sys.argv[2] if len(sys.argv) > 2 else "0.05"
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 100
    version = torch.__version__.split("+")[0]
    servers = [
        [program, "serve", "127.0.0.1:0"],
        [sys.executable, "-c", SERVE, "libuv"],
        [sys.executable, "-c", SERVE, "plain"],
    ]
    print(
        f"{datetime.date.today()}, {rounds} rounds with turns of {seconds} s, PyTorch {version}, "
        f"{os.cpu_count()} cores ({platform.machine()}), load {os.getloadavg()[0]:.1f}\n"
    )
    print("| clients | operation | ours, a second | over libuv | over plain |")
    print("|---:|---|---:|---|---|")
    with contextlib.ExitStack() as stack:
        pids, addresses = zip(*(stack.enter_context(serving(command)) for command in servers))
        for clients in CLIENTS:
            before = [processor_time(pid) for pid in pids]
            rates, queries = measure(program, clients, seconds, rounds, addresses)
            used = [processor_time(pid) - before for pid, before in zip(pids, before)]
            for name in QUERIES:
                ours = rates[name, 0]
                row = [f"{statistics.median(ours):,.0f}"]
                row += [ratios(ours, rates[name, other]) for other in (1, 2)]
                print(f"| {clients} | `{name}` | {' | '.join(row)} |", flush=True)
            ours, *others = [time / count * 1e6 for time, count in zip(used, queries)]
            row = [f"{ours:.1f}"] + [f"{ours / other:.2f}" for other in others]
            print(f"| {clients} | processor time of a query, µs | {' | '.join(row)} |", flush=True)


def ratios(ours, theirs):
    """The median of the rounds' ratios, and the middle half of them."""
    each = [one / other for one, other in zip(ours, theirs) if other > 0]
    low, middle, high = statistics.quantiles(each, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
