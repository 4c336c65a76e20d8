"""The application: verbs, and the one place where errors become a sentence and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError

from microtome import __version__
from microtome.cli.atlas import atlas
from microtome.cli.calibrate import calibrate
from microtome.cli.convert import convert
from microtome.cli.doctor import doctor
from microtome.cli.examine import examine, plan
from microtome.cli.output import say
from microtome.cli.papers import papers
from microtome.cli.runs import compare, list_runs, report, show
from microtome.cli.study import study
from microtome.cli.view import view
from microtome.errors import MicrotomeError, nearest

HELP = """A laboratory for neural networks.

What has it learned, why does it answer so, when will it fail, who can break it, how small can it get?
Begin with `microtome examine`, which trains a small network on embedded data and examines it.
"""

EPILOGUE = """Every verb takes --help, and --debug, which shows the traceback of an error.

Exit status: 0 fine, 1 a threshold failed, 2 the request is wrong, 3 the network or its data cannot be
examined, 4 some instruments failed, 70 a fault in microtome, 130 stopped, and all that was finished is saved.
"""


app = App(
    name="microtome",
    help=HELP,
    help_epilogue=EPILOGUE,
    help_format="plaintext",  # loading a Markdown reader would cost a fifth of the time help takes
    version=__version__,
    default_parameter=Parameter(negative=()),
    result_action="return_value",
)
for _verb in (examine, plan, compare, calibrate, report, show, view, papers, atlas, convert, doctor):
    app.command(_verb)
app.command(list_runs, name="list")
app.command(study)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command line and exit."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit status."""
    tokens = [token for token in argv if token != "--debug"]
    debug = len(tokens) != len(argv) or os.environ.get("MICROTOME_DEBUG", "") not in ("", "0")
    try:
        status: Any = app(tokens, exit_on_error=False, print_error=False)
        return status if isinstance(status, int) else 0
    except MicrotomeError as error:
        if debug:
            raise
        say(f"microtome: {error}")
        return error.exit_status
    except CycloptsError as error:
        if debug:
            raise
        say(f"microtome: {_usage_sentence(error, tokens)}")
        return 2
    except KeyboardInterrupt:
        say("microtome: stopped at once; what had been finished is stored (`microtome list`)")
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`). Python flushes stdout once more at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # Not 1: a fault of ours must not look like a threshold that failed.
        traceback.print_exc()
        say(f"microtome: MT199 this is a fault in microtome, not in your request ({type(error).__name__})")
        return 70


def _usage_sentence(error: CycloptsError, tokens: Sequence[str]) -> str:
    verbs = [name for name in app if not name.startswith("-")]
    if isinstance(error, UnknownCommandError):
        unknown = tokens[0] if tokens else ""
        return (
            f"MT111 there is no verb '{unknown}'; {nearest(unknown, verbs) or 'verbs: ' + ', '.join(verbs)}"
        )
    sentence = " ".join(str(error).split())
    verb = tokens[0] if tokens and tokens[0] in verbs else ""
    return f"MT111 {sentence.rstrip('.')}; see `microtome {verb + ' ' if verb else ''}--help`"
