"""Our server and PyTorch's two, with the same client, on this machine: how fast, and at what cost.

    python3 throughput.py PATH/tcp_store [SECONDS] [ROUNDS]

`tcp_store` is the example of this crate, built with --release. Each figure is the median of ROUNDS,
which take the servers in turn, so that whatever else the machine does meets all of them. Rates need
a quiet machine; the processor time that a server takes for a query hardly does.
"""

import contextlib
import datetime
import os
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
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def serving(command):
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield server.pid, server.stdout.readline().strip()
    finally:
        server.kill()
        server.wait()


def main():
    program = sys.argv[1]
    seconds = sys.argv[2] if len(sys.argv) > 2 else "2"
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    version = torch.__version__.split("+")[0]
    servers = {
        "ours": [program, "serve", "127.0.0.1:0"],
        f"PyTorch {version}, libuv": [sys.executable, "-c", SERVE, "libuv"],
        f"PyTorch {version}, plain": [sys.executable, "-c", SERVE, "plain"],
    }
    rates, costs = {}, {}
    with contextlib.ExitStack() as stack:
        addresses = {
            server: stack.enter_context(serving(command)) for server, command in servers.items()
        }
        for _ in range(rounds):
            for clients in CLIENTS:
                for server, (pid, address) in addresses.items():
                    before = processor_time(pid)
                    bench = [program, "bench", address, str(clients), seconds]
                    output = subprocess.run(bench, check=True, stdout=subprocess.PIPE, text=True)
                    queries = 0
                    for line in output.stdout.splitlines():
                        operation, rate = line.split()
                        rates.setdefault((operation, clients, server), []).append(float(rate))
                        queries += QUERIES[operation] * float(rate) * float(seconds)
                    cost = (processor_time(pid) - before) / queries
                    costs.setdefault((clients, server), []).append(cost)
    print(f"{datetime.date.today()}, {rounds} rounds of {seconds} s\n\noperations a second")
    print("| operation | clients |", " | ".join(servers), "|")
    print("|---|---" + "|---" * len(servers) + "|")
    for operation in ["set", "add", "get"]:
        for clients in CLIENTS:
            row = [statistics.median(rates[operation, clients, server]) for server in servers]
            print(f"| `{operation}` | {clients} |", " | ".join(f"{rate:,.0f}" for rate in row), "|")
    print("\nprocessor time of the server for a query, in µs")
    for clients in CLIENTS:
        row = [statistics.median(costs[clients, server]) * 1e6 for server in servers]
        print(f"| {clients} |", " | ".join(f"{cost:.1f}" for cost in row), "|")


if __name__ == "__main__":
    main()
