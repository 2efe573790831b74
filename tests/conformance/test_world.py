"""The world around a task is its caller's: directory, environment, path, however the program started (15)."""

from __future__ import annotations

import sys

import pytest

from tests.conformance.support import DEADLINE_S, Scripts, only_zfarm, separate

HOWS = ["file", "-c", "stdin"]

PROGRAM = """
    print("top", flush=True)

    def work(n):
        return n + offset

    offset = 100
    with Executor(max_workers=2) as executor:
        print(list(executor.map(work, range(5))), executor.submit(work, 7).result())
"""


@separate
@pytest.mark.parametrize("how", HOWS)
def test_programs_need_no_guard_and_run_once(scripts: Scripts, how: str) -> None:
    """(15)"""
    assert scripts.prints(PROGRAM, how) == "top\n[100, 101, 102, 103, 104] 107\n"


@separate
def test_a_guarded_program_runs_too(scripts: Scripts) -> None:
    """(15)"""
    out = scripts.prints("""
        def work(n):
            return n * n, __name__

        def main():
            with Executor(max_workers=2) as executor:
                print(executor.submit(work, 7).result())

        print("top", flush=True)
        if __name__ == "__main__":
            main()
    """)

    assert out == "top\n(49, '__main__')\n"


@separate
@pytest.mark.parametrize("name", ["package.module", "package"])
def test_a_module_of_a_package_with_relative_imports(scripts: Scripts, name: str) -> None:
    """(15)"""
    package = scripts.folder / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sibling.py").write_text("value = 5\ndef triple(n): return 3 * n\n")
    text = scripts.text("""
        from . import sibling
        from .sibling import triple

        def work(n):
            from .sibling import value
            return triple(n) + value + sibling.value

        print("top", flush=True)
        with Executor(max_workers=2) as executor:
            print(list(executor.map(work, range(3))), executor.submit(triple, 7).result())
    """)
    (package / ("module.py" if "." in name else "__main__.py")).write_text(text)
    process = scripts.popen([sys.executable, "-m", name])
    code, out, err = scripts.finish(process)

    assert (code, out, err) == (0, "top\n[10, 13, 16] 21\n", "")


@separate
def test_modules_beside_the_script_are_found(scripts: Scripts) -> None:
    """(15)"""
    elsewhere = scripts.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "beside.py").write_text("class Thing:\n    pass\ndef work(n): return n + 1\n")
    body = """
        import beside
        with Executor(max_workers=1) as executor:
            thing = executor.submit(beside.Thing).result()
            print(executor.submit(beside.work, 1).result(), type(thing) is beside.Thing)
    """
    (elsewhere / "script.py").write_text(scripts.text(body))
    code, out, err = scripts.finish(scripts.popen([sys.executable, "elsewhere/script.py"]))

    assert (code, out, err) == (0, "2 True\n", "")


@separate
def test_the_working_directory_is_the_callers(scripts: Scripts) -> None:
    """(15) As it was changed at run time."""
    (scripts.folder / "data").mkdir()
    (scripts.folder / "data" / "file").write_text("text")
    out = scripts.prints("""
        import os

        def read():
            with open("file") as file:
                return file.read()

        os.chdir("data")
        with Executor(max_workers=1) as executor:
            print(executor.submit(os.getcwd).result() == os.getcwd(), executor.submit(read).result())
    """)

    assert out == "True text\n"


@separate
def test_the_environment_is_the_callers(scripts: Scripts) -> None:
    """(15) As it was changed at run time."""
    out = scripts.prints(
        """
        import os
        os.environ["SET_AT_RUN_TIME"] = "yes"
        os.environ.pop("GIVEN", None)
        with Executor(max_workers=1) as executor:
            print(*executor.map(os.getenv, ["SET_AT_RUN_TIME", "GIVEN"]))
    """,
        env={"GIVEN": "no"},
    )

    assert out == "yes None\n"


@separate
def test_the_path_is_the_callers(scripts: Scripts) -> None:
    """(15) As it was changed at run time, for functions and for imports inside of tasks."""
    (scripts.folder / "more").mkdir()
    (scripts.folder / "more" / "found_at_run_time.py").write_text("def work(n): return n + 1\n")
    out = scripts.prints("""
        import sys
        sys.path.insert(0, "more")
        import found_at_run_time

        def importing():
            import found_at_run_time
            return found_at_run_time.work(10)

        with Executor(max_workers=1) as executor:
            print(executor.submit(found_at_run_time.work, 1).result(), executor.submit(importing).result())
    """)

    assert out == "2 11\n"


@only_zfarm
def test_changes_after_the_executor_was_made_hold_too(scripts: Scripts) -> None:
    """(15) The children of a process pool are made with the first call, and stay as they were."""
    (scripts.folder / "more").mkdir()
    (scripts.folder / "more" / "found_later.py").write_text("def work(n): return n + 1\n")
    out = scripts.prints("""
        import os, sys
        with Executor(max_workers=1) as executor:
            print(executor.submit(os.getcwd).result() == os.getcwd())
            sys.path.append(os.path.abspath("more"))
            import found_later
            print(executor.submit(found_later.work, 1).result())
            os.chdir("more")
            print(executor.submit(os.getcwd).result() == os.getcwd())
    """)

    assert out == "True\n2\nTrue\n"


@only_zfarm
def test_an_environment_changed_later_holds_too(scripts: Scripts) -> None:
    """(15)"""
    out = scripts.prints("""
        import os
        with Executor(max_workers=1) as executor:
            print(executor.submit(os.getenv, "SET_LATER").result())
            os.environ["SET_LATER"] = "yes"
            print(executor.submit(os.getenv, "SET_LATER").result())
            del os.environ["SET_LATER"]
            print(executor.submit(os.getenv, "SET_LATER").result())
    """)

    assert out == "None\nyes\nNone\n"


@only_zfarm
def test_a_task_that_changes_its_directory_disturbs_no_other(scripts: Scripts) -> None:
    """(15)"""
    out = scripts.prints("""
        import os
        with Executor(max_workers=1) as executor:
            executor.submit(os.chdir, "/").result()
            print(executor.submit(os.getcwd).result() == os.getcwd())
    """)

    assert out == "True\n"


@only_zfarm
def test_a_working_directory_that_is_gone_is_no_obstacle(scripts: Scripts) -> None:
    """(15)"""
    out = scripts.prints("""
        import os
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir("../gone")
        with Executor(max_workers=1) as executor:
            print(executor.submit(pow, 2, 3).result())
    """)

    assert out == "8\n"


@separate
def test_the_arguments_and_the_file_of_the_program_are_known(scripts: Scripts) -> None:
    """(15)"""
    text = scripts.text("""
        import sys
        from pathlib import Path

        def work():
            return Path(__file__).name, sys.argv[1:]

        with Executor(max_workers=1) as executor:
            print(executor.submit(work).result())
    """)
    (scripts.folder / "script.py").write_text(text)
    code, out, err = scripts.finish(scripts.popen([sys.executable, "script.py", "--flag", "value"]))

    assert (code, out, err) == (0, "('script.py', ['--flag', 'value'])\n", "")


@separate
def test_a_session_at_the_prompt(scripts: Scripts) -> None:
    """(15) Functions typed at the prompt have no file to be imported from, as in a notebook."""
    text = scripts.text("""
        def work(n):
            return n * n

        executor = Executor(max_workers=1)
        print(executor.submit(work, 7).result())
        work = lambda n: n + 1

        print(work(1))
        executor.shutdown()
    """)
    process = scripts.popen([sys.executable, "-i", "-q"], text)
    out, _ = process.communicate(timeout=DEADLINE_S)

    assert out.split() == ["49", "2"]


@only_zfarm
def test_a_notebook(scripts: Scripts) -> None:
    """(15, 16) Cells run one after the other in one ``__main__``, by exec, with names that are no files."""
    out = scripts.prints("""
        cells = [
            "from zfarm import Executor; executor = Executor(max_workers=2)",
            "def work(n):\\n    return n + offset",
            "offset = 10\\nprint(list(executor.map(work, range(3))))",
            "offset = 20\\nprint(list(executor.map(work, range(3))))",
            "def work(n):\\n    return -n\\nprint(list(executor.map(work, range(3))))",
            "class Point:\\n    def __init__(self, x): self.x = x",
            "print(type(executor.submit(Point, 3).result()) is Point)",
            "executor.shutdown()",
        ]
        for number, cell in enumerate(cells):
            exec(compile(cell, f"<cell {number}>", "exec"), globals())
    """)

    assert out == "[10, 11, 12]\n[20, 21, 22]\n[0, -1, -2]\nTrue\n"
