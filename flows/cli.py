"""The command line: one program of all verbs, and what it says and exits with when something goes wrong.

Exit codes: 0 done, 1 some merges failed or some of the Hub was not seen, 2 bad input, 3 broken environment.
"""

import atexit
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from flows.settings import Problem, Problems, quiet_libraries
from flows.verbs import adapters, catalogue, fleet, history, hub, machine, night, picking

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Any subject in any style, for a whole catalogue, every night.",
)
_VERBS: dict[str, Callable[..., None]] = {
    "demo": night.demo,
    "check": night.check,
    "scan": night.scan,
    "plan": night.plan,
    "run": night.run,
    "merge": adapters.merge,
    "request": catalogue.request,
    "pick": picking.pick,
    "show": catalogue.show_item,
    "why": catalogue.why,
    "export": adapters.export,
    "gallery": catalogue.gallery,
    "publish": hub.publish,
    "verify": hub.verify,
    "takedown": hub.takedown,
    "query": catalogue.query,
    "snapshot": picking.snapshot,
    "notebook": picking.notebook,
    "rebuild": history.rebuild,
    "rescore": history.rescore,
    "doctor": machine.doctor,
    "deploy": fleet.deploy,
    "worker": fleet.worker,
}
for _name, _verb in _VERBS.items():
    app.command(_name)(_verb)

_INTERRUPTED = 130
_BROKEN = ("DISK", "CATALOGUE", "STORE", "HUB", "AUTH")
"""How codes of a broken environment begin."""


def main() -> NoReturn:
    """Run a command; whatever goes wrong is said in one sentence."""
    atexit.register(_hush)
    quiet_libraries()
    code = 0
    try:
        done = app(standalone_mode=False)
        code = done if isinstance(done, int) else 0
        if code == _INTERRUPTED:  # typer makes a number of it
            raise KeyboardInterrupt
    except (Problem, Problems) as error:
        code = _say(str(error), error.exit_code)
    except TyperException as error:
        code = _say(f"USAGE  {error} Next: ziplora --help", 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _say("INTERRUPTED  Stopped; what was finished is kept. Next: run the same command again.", _INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - nobody should read a stack trace in a terminal
        code = _say(*_in_words(error))
    sys.exit(code)


def _hush() -> None:
    """After all else: duckdb beside torch prints a page of complaints while Python takes its modules down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _say(sentence: str, code: int) -> int:
    sys.stderr.write(f"{sentence}\n")
    return code


def _in_words(error: Exception) -> tuple[str, int]:
    """What any other error says, and the code to exit with."""
    from catalog.errors import CatalogueError
    from flows.trouble import disk_full, is_disk_full
    from ziplora.failure import Failure
    from ziplora.header import Refusal

    if is_disk_full(error):
        return str(disk_full(error)), 3
    if isinstance(error, Failure | Refusal | CatalogueError):
        broken = isinstance(error, CatalogueError) and error.code.startswith(_BROKEN)
        return str(error), 3 if broken else 2
    with tempfile.NamedTemporaryFile("w", prefix="ziplora-", suffix=".log", delete=False) as log:
        log.write("".join(traceback.format_exception(error)))
    fact = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return f"UNEXPECTED  {fact}. Next: see {log.name}, and report it.", 3
