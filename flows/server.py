"""Prefect's API for one command: `python -m flows.server`, started by flows/runtime.py.

The same application, settings and life as Prefect's own ephemeral server, with two differences: it dies with the
process that started it, also when that one is killed with -9 (Prefect's stops in an atexit handler alone), and it
serves a socket that the parent has bound, so that no port is guessed.

Standard input is a pipe whose other end the parent holds; file descriptor argv[1] is the listening socket.
"""

import os
import signal
import socket
import sys
import threading

APP_ENVIRONMENT = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
GRACE_S = 3.0


def die_with_parent() -> None:
    """End when standard input closes: in good order, or hard when that takes more than three seconds."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        threading.Timer(GRACE_S, os._exit, [1]).start()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main() -> None:
    die_with_parent()
    # Ctrl-C in the terminal is for the parent, which still has to tell this server how its flow ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(APP_ENVIRONMENT)

    import uvicorn

    config = uvicorn.Config(
        "prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on", access_log=False
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
