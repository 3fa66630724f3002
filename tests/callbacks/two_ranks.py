"""What the programs for two processes share: `in_two_processes(run_rank, folder)` at their end."""

import os
import socket
import sys

import torch


def in_two_processes(run_rank, folder):
    """Call run_rank(folder) in two gloo processes and end with the second one's status."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The second process is a fork made before any work is: torch is imported once, which is what takes time.
    child = os.fork()
    # The environment that `torchrun` would make.
    place = {"LOCAL_RANK": 0 if child else 1, "NODE_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({key: str(value) for key, value in (place | {"MASTER_PORT": port}).items()})
    run_rank(folder)
    torch.distributed.destroy_process_group()
    if not child:
        os._exit(0)  # the ordinary end would join threads that torch's import started in the parent alone
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
