"""Ties a child process to its parent: the child is killed when the parent ends, however that happens.

Run as a program, by path and without site packages, it asks the kernel for that and becomes the program it is given,
under the same process id. A function between fork and exec would do the same, but is not safe in a process that has
threads, as every process with gRPC has.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tethered(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The command line that runs `argv` tied to this process, or rather to the thread that starts it."""
    return (sys.executable, "-I", "-S", __file__, str(os.getpid()), *argv)


def main(arguments: list[str]) -> None:
    """`PARENT_PID PROGRAM [ARGUMENT...]`."""
    parent_pid, argv = int(arguments[0]), arguments[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    # The parent may have ended before the kernel was asked; then nothing would end this process.
    if os.getppid() != parent_pid:
        sys.exit(f"the parent {parent_pid} has ended")
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main(sys.argv[1:])
