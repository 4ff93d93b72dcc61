"""SIGTERM to work that can be given up, and to work whose traces must be tidied."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gan_t2i.core.files import atomic_folder
from gan_t2i.core.stopping import Interrupted, StopRequest, cleanup_on_sigterm


def test_what_can_be_given_up_is_given_up_when_the_signal_comes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        with pytest.raises(Interrupted), stop.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        with pytest.raises(Interrupted), stop.interruptible():
            pytest.fail("begun after the signal")
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_of_it_a_signal_is_noted_alone() -> None:
    with StopRequest(alone=False) as stop:
        with stop.interruptible():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # of several processes none obeys a second one
        assert stop.signal == signal.SIGTERM


def test_one_of_several_lives_to_print_its_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(ValueError, match="lost"), StopRequest(alone=False) as stop:
            raise ValueError("lost")
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_another_thread_is_left_in_peace() -> None:
    handlers = []

    def work() -> None:
        with StopRequest() as stop:
            handlers.extend([stop.signal, signal.getsignal(signal.SIGTERM)])

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [None, before]


KILLED = """
import os, signal, sys
from pathlib import Path
from gan_t2i.core.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "half").touch()
    print(folder.exists(), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("went on", flush=True)
"""


def test_a_folder_that_is_half_written_goes_with_the_process(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "x")], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (-signal.SIGTERM, "True\n"), result.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_leaves_a_handler_alone_that_is_there() -> None:
    noted = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    try:
        with cleanup_on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
        assert noted == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    with cleanup_on_sigterm():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_may_write_folders_too(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_folder(tmp_path / "x") as folder:
            (folder / "a").touch()

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert (tmp_path / "x" / "a").is_file()
