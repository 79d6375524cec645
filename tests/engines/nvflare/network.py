from contextlib import contextmanager


class Network: ...


@contextmanager
def bring_up(folder):
    yield Network()
