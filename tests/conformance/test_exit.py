"""The end of the interpreter: what is queued finishes first, and nothing is heard or left of it (9, 10)."""

from __future__ import annotations

import pytest

from tests.conformance.support import DEADLINE_S, Scripts, everyone, kinds, only_zfarm, separate

WORK = """
    import sys

    def work(n):
        sys.stdout.write(f"done {n}\\n")  # one write: lines of several processes do not mix
        sys.stdout.flush()
        return n
"""

NUMBERS = sorted(f"done {n}" for n in range(30))


@everyone
@pytest.mark.parametrize(
    "ending",
    [
        "",
        "executor.shutdown(wait=False)",
        "del executor",
        "executor.shutdown(wait=False); del executor, futures",
        "futures[-1].result(); del futures",
    ],
    ids=["nothing", "shutdown", "del", "shutdown-del", "result"],
)
def test_what_is_queued_finishes_before_the_interpreter_ends(scripts: Scripts, ending: str) -> None:
    """(9)"""
    out = scripts.prints(f"""
{WORK}
    executor = Executor(max_workers=2)
    futures = [executor.submit(work, n) for n in range(30)]
    {ending}
    """)

    assert sorted(out.splitlines()) == NUMBERS


@everyone
def test_output_that_the_task_did_not_flush_appears(scripts: Scripts) -> None:
    """(9, 18)"""
    out = scripts.prints("""
        executor = Executor(max_workers=1)
        executor.submit(print, "apple")
    """)

    assert out == "apple\n"


@everyone
def test_callbacks_run_before_the_interpreter_ends(scripts: Scripts) -> None:
    """(9)"""
    out = scripts.prints("""
        executor = Executor(max_workers=1)
        for n in range(5):
            executor.submit(pow, n, 2).add_done_callback(lambda future: print(future.result(), flush=True))
    """)

    assert out.split() == ["0", "1", "4", "9", "16"]


@everyone
def test_submit_from_atexit_is_refused(scripts: Scripts) -> None:
    """(8)"""
    out = scripts.prints("""
        import atexit

        executor = Executor(max_workers=1)

        @atexit.register
        def late():
            try:
                executor.submit(pow, 2, 3)
            except RuntimeError as error:
                print("refused:", error, flush=True)

        print(executor.submit(pow, 2, 3).result(), flush=True)
    """)

    first, second = out.splitlines()
    assert first == "8"
    assert second.startswith("refused: cannot schedule new futures after")
    assert second.endswith("shutdown")


@everyone
def test_an_executor_of_a_thread_finishes_its_work(scripts: Scripts) -> None:
    """(9)"""
    out = scripts.prints(f"""
{WORK}
    import threading

    def main():
        executor = Executor(max_workers=2)
        for n in range(30):
            executor.submit(work, n)

    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
    """)

    assert sorted(out.splitlines()) == NUMBERS


@everyone
def test_an_uncaught_exception_is_all_that_is_heard(scripts: Scripts) -> None:
    """(9)"""
    code, out, err = scripts.run(f"""
{WORK}
    executor = Executor(max_workers=2)
    futures = [executor.submit(work, n) for n in range(30)]
    raise LookupError("of the program")
    """)

    assert code == 1
    assert sorted(out.splitlines()) == NUMBERS
    assert err.count("Traceback") == 1
    assert err.rstrip().endswith("LookupError: of the program")


@everyone
def test_the_exit_code_is_the_programs(scripts: Scripts) -> None:
    """(9)"""
    code, out, err = scripts.run(f"""
{WORK}
    import sys
    executor = Executor(max_workers=2)
    futures = [executor.submit(work, n) for n in range(30)]
    sys.exit(5)
    """)

    assert (code, err) == (5, "")
    assert sorted(out.splitlines()) == NUMBERS


@everyone
def test_failed_calls_that_nobody_asks_for_are_silent(scripts: Scripts) -> None:
    """(9)"""
    assert (
        scripts.prints("""
        def fail():
            raise ValueError("unseen")

        executor = Executor(max_workers=2)
        futures = [executor.submit(fail) for n in range(5)]
    """)
        == ""
    )


@everyone
def test_an_executor_that_was_never_used_is_silent(scripts: Scripts) -> None:
    """(9)"""
    assert (
        scripts.prints("""
        executor = Executor(max_workers=2)
        other = Executor(max_workers=2)
        del other
    """)
        == ""
    )


@kinds("threads", "zfarm")  # a process pool whose manager ends late now and then complains on stderr
def test_executors_in_globals_cycles_and_finalizers(scripts: Scripts) -> None:
    """(9)"""
    assert (
        scripts.prints("""
        class Owner:
            def __init__(self):
                self.executor = Executor(max_workers=1)
                self.me = self
                self.future = self.executor.submit(pow, 2, 3)
            def __del__(self):
                self.executor.shutdown(wait=False)

        owners = [Owner() for _ in range(2)]
        Owner()
        results = Executor(max_workers=1).map(pow, range(10), range(10))
        print(next(results), flush=True)
    """)
        == "1\n"
    )


@separate
def test_output_stays_in_order_within_one_task(scripts: Scripts) -> None:
    """(18)"""
    out = scripts.prints("""
        def work():
            for n in range(2000):
                print(n)

        with Executor(max_workers=2) as executor:
            executor.submit(work).result()
    """)

    assert out.split() == [str(n) for n in range(2000)]


@only_zfarm
def test_a_daemon_thread_that_submits_until_the_end_is_silent(scripts: Scripts) -> None:
    """(9)"""
    assert (
        scripts.prints("""
        import threading

        executor = Executor(max_workers=2)
        begun = threading.Event()

        def submit_for_ever():
            while True:
                try:
                    executor.submit(pow, 2, 3)
                except RuntimeError:
                    return
                begun.set()

        threading.Thread(target=submit_for_ever, daemon=True).start()
        begun.wait()
        print("end", flush=True)
    """)
        == "end\n"
    )


@only_zfarm
def test_a_program_that_ends_by_os_exit_leaves_nothing(scripts: Scripts) -> None:
    """(10) The check after every test waits until all its processes are gone."""
    out = scripts.prints("""
        import os
        executor = Executor(max_workers=2)
        print(executor.submit(pow, 2, 3).result(), flush=True)
        os._exit(0)
    """)

    assert out == "8\n"


@only_zfarm
def test_an_idle_executor_does_not_delay_the_end(scripts: Scripts) -> None:
    """(9)"""
    out = scripts.prints("""
        import time
        executor = Executor(max_workers=2)
        executor.submit(pow, 2, 3).result()
        print(time.time(), flush=True)
        import atexit, threading
        threading._register_atexit(lambda: None)
        atexit.register(lambda: print(time.time(), flush=True))
    """)

    began, ended = map(float, out.split())
    assert ended - began < DEADLINE_S / 10
