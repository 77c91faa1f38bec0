"""Stands between one client and a server, and writes down what they say.

    python3 recorder.py PORT FILE

Prints the port at which it listens; PORT is the server's. Writes FILE when both have hung up. A
process of its own, since not all of PyTorch's calls let other threads of theirs run.
"""

import socket
import sys
import threading

port, path = int(sys.argv[1]), sys.argv[2]
log, lock = [], threading.Lock()


def pump(source, target, sign):
    while data := source.recv(1 << 16):
        with lock:
            if log and log[-1][0] == sign:
                log[-1] = (sign, log[-1][1] + data)
            else:
                log.append((sign, data))
            target.sendall(data)
    target.shutdown(socket.SHUT_WR)


listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
client, _ = listener.accept()
server = socket.create_connection(("127.0.0.1", port))
back = threading.Thread(target=pump, args=(server, client, "<"))
back.start()
pump(client, server, ">")
back.join()
with open(path, "w") as file:
    file.writelines(f"{sign} {data.hex()}\n" for sign, data in log)
