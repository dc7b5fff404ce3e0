"A function in a process of its own that has everything imported already."
from multiprocessing import get_context


def forked(f, *args):
    process = get_context('fork').Process(target=f, args=args)
    process.start()
    return process


def ended(process, seconds=300):
    "Its exit code, minus the signal that killed it."
    process.join(seconds)
    return process.exitcode
