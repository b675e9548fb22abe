"""A process that dies: from one call of the system on, nothing that it does changes the disk any more."""

import os

CHANGES = ("open", "mkdir", "fsync", "chmod", "replace", "rename", "link", "unlink", "rmdir")

fsync = os.fsync


class Killed(BaseException):
    """The process is gone."""


class Death:
    """Lets the `after`-th call of the system that changes files, and every one behind it, fail.

    Calls before the death are done. As a dead process cleans nothing up, the calls of its handlers for errors
    fail as well.

    Args:
        monkeypatch: of pytest.
        after: calls that are done before.

    Attributes:
        struck: whether it came to that.
    """

    def __init__(self, monkeypatch, after: int):
        self.struck = False
        self._left = after
        for name in CHANGES:
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name)))

    def _wrapped(self, function):
        def call(*args, **kwargs):
            if self._left == 0:
                self.struck = True
                raise Killed
            self._left -= 1
            # A process that is killed loses nothing that it gave to the system; synchronising takes long.
            return None if function is fsync else function(*args, **kwargs)

        return call


def each_death(monkeypatch, prepare, work):
    """Kills `work` before each of its calls of the system in turn.

    Args:
        monkeypatch: of pytest.
        prepare: makes the state before; called anew each time.
        work: what is killed.

    Yields:
        The number of calls that were done, after each death, and at last after none.
    """
    for after in range(1000):
        prepare()
        with monkeypatch.context() as patch:
            death = Death(patch, after)
            try:
                work()
            except Killed:
                pass
            else:
                assert not death.struck, "a death was swallowed"
        yield after
        if not death.struck:
            return
    raise AssertionError("never came to an end")
