"""What a process is to its parent, and to the children of those that it forked."""

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, ...)
    int PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER


def die_with_parent(int signal):
    """Ask the kernel to send `signal` to this process when the thread that forked it ends."""
    if prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0):
        raise OSError("prctl(PR_SET_PDEATHSIG) failed")


def adopt_orphans():
    """Become the parent of whatever the workers leave behind."""
    if prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("prctl(PR_SET_CHILD_SUBREAPER) failed")
