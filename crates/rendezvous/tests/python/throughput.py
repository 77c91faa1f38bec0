"""Operations a second: our server and PyTorch's two, with the same client, on this machine.

    python3 throughput.py PATH/tcp_store [SECONDS] [ROUNDS]

`tcp_store` is the example of this crate, built with --release. Each figure is the median of ROUNDS,
which take the servers in turn, so that whatever else the machine does meets all of them.
"""

import contextlib
import datetime
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


@contextlib.contextmanager
def serving(command):
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield server.stdout.readline().strip()
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
    rates = {}
    with contextlib.ExitStack() as stack:
        addresses = {
            server: stack.enter_context(serving(command)) for server, command in servers.items()
        }
        for _ in range(rounds):
            for clients in CLIENTS:
                for server, address in addresses.items():
                    bench = [program, "bench", address, str(clients), seconds]
                    output = subprocess.run(bench, check=True, stdout=subprocess.PIPE, text=True)
                    for line in output.stdout.splitlines():
                        operation, rate = line.split()
                        rates.setdefault((operation, clients, server), []).append(float(rate))
                        print(f"{server}, {clients}: {line}", file=sys.stderr)
    print(f"{datetime.date.today()}, {rounds} rounds of {seconds} s, operations a second\n")
    print("| operation | clients |", " | ".join(servers), "|")
    print("|---|---" + "|---" * len(servers) + "|")
    for operation in ["set", "add", "get"]:
        for clients in CLIENTS:
            row = [statistics.median(rates[operation, clients, server]) for server in servers]
            print(f"| `{operation}` | {clients} |", " | ".join(f"{rate:,.0f}" for rate in row), "|")


if __name__ == "__main__":
    main()
