"""What pip 23.2 and uv 0.13 printed in failed installations, and the sentence that is made of it."""

from __future__ import annotations

import pytest

from smollm3_finetune.errors import IncompatibleError, MissingRequirementError, SmolLM3Error, WriteError
from smollm3_finetune.installing.failures import NotFound, failure

PINS = ["torch==2.13.0+cpu", "smollm3-finetune==0.1.0", "click==8.5.1", "numpy==2.2.6"]
PIP_CONFLICT = """\
INFO: pip is looking at multiple versions of acme-torch to determine which version is compatible.
ERROR: Cannot install acme-torch==1.0 because these package versions have conflicting dependencies.

The conflict is caused by:
    acme-torch 1.0 depends on {wanted}
    The user requested (constraint) {pin}

To fix this you could try to:
1. loosen the range of package versions you've specified
ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/en/latest/topics/dependency-resolution/
"""
UV_CONFLICT = """\
error: No solution found when resolving dependencies
  cause: Because all versions of acme-torch depend on {wanted} and {pin}, we can conclude that all versions of acme-torch cannot be used.
         And because you require acme-torch, we can conclude that your requirements are unsatisfiable.
"""  # noqa: E501
UV_OF_A_FILE = """\
error: No solution found when resolving dependencies
  cause: Because acme-torch==1.0 depends on {wanted} and {pin}, we can conclude that acme-torch==1.0 cannot be used.
"""


@pytest.mark.parametrize(
    ("text", "who"), [(PIP_CONFLICT, "acme-torch 1.0"), (UV_CONFLICT, "acme-torch"), (UV_OF_A_FILE, "acme-torch 1.0")]
)
@pytest.mark.parametrize("wanted", ["torch<2", "torch>=3,<4", "torch[extra]==1.0"])
def test_a_conflict_names_both_sides_and_the_option(text: str, who: str, wanted: str) -> None:
    error = failure(text.format(wanted=wanted, pin="torch==2.13.0+cpu"), "pip", PINS)
    assert isinstance(error, IncompatibleError)
    assert error.message == (
        f"{who} needs {wanted}, but torch 2.13.0+cpu is installed; nothing that is installed is replaced"
    )
    assert error.hint == "to replace it anyway: --allow-change torch"


@pytest.mark.parametrize("text", [PIP_CONFLICT, UV_CONFLICT])
def test_a_plugin_for_another_core_is_not_offered_to_replace_it(text: str) -> None:
    error = failure(text.format(wanted="smollm3-finetune>=9", pin="smollm3-finetune==0.1.0"), "pip", PINS)
    assert isinstance(error, IncompatibleError) and "needs smollm3-finetune>=9, but" in error.message
    assert error.hint is not None and "--allow-change" not in error.hint


def test_several_conflicts_name_all_options() -> None:
    text = PIP_CONFLICT.format(wanted="torch<2", pin="torch==2.13.0+cpu").replace(
        "    The user",
        "    acme-torch 1.0 depends on numpy<2\n    The user requested (constraint) numpy==2.2.6\n    The user",
    )
    error = failure(text, "pip", PINS)
    assert error.hint == "to replace it anyway: --allow-change torch --allow-change numpy"


NETWORK = "Failed to establish a new connection: [Errno 111] Connection refused"
CASES = [
    ("ERROR: Could not find a version that satisfies the requirement acme-x (from versions: none)\n"
     "ERROR: No matching distribution found for acme-x\n",
     NotFound, "no package index and no --find-links has acme-x"),
    ("error: No solution found when resolving dependencies\n  cause: Because acme-x was not found in the provided "
     "package locations and you require acme-x, we can conclude that your requirements are unsatisfiable.\n",
     NotFound, "no package index and no --find-links has acme-x"),
    ("ERROR: Package 'acme-py' requires a different Python: 3.11.7 not in '>=3.99'\n",
     IncompatibleError, "acme-py needs Python >=3.99, but this is Python"),
    ("error: No solution found when resolving dependencies\n  cause: Because acme-py==1.0 requires Python >=3.99 and "
     "only acme-py==1.0 is available, we can conclude that all versions of acme-py cannot be used.\n",
     IncompatibleError, "acme-py needs Python >=3.99, but this is Python"),
    ("ERROR: x-1.0-py3-none-win32.whl is not a supported wheel on this platform.\n",
     IncompatibleError, "x-1.0-py3-none-win32.whl is a wheel for another platform"),
    ("ERROR: Could not install packages due to an OSError: HTTPConnectionPool(host='127.0.0.1', port=9): Max retries "
     f"exceeded with url: /x-1.0.whl (Caused by NewConnectionError('<HTTPConnection object>: {NETWORK}'))\n",
     SmolLM3Error, "127.0.0.1/x-1.0.whl cannot be reached"),
    ("error: Failed to download `x @ http://127.0.0.1:9/x-1.0.whl`\n  cause: Failed to fetch: http://127.0.0.1:9/x-1.0.whl"
     "\n  cause: tcp connect error\n", SmolLM3Error, "http://127.0.0.1:9/x-1.0.whl cannot be reached"),
    (f"WARNING: Retrying after connection broken by 'NewConnectionError: {NETWORK}': /simple/acme/\n"
     "ERROR: No matching distribution found for acme\n", SmolLM3Error, "the package index cannot be reached"),
    ("  ERROR: HTTP error 404 while getting https://example.org/x-1.0.whl\n",
     SmolLM3Error, "https://example.org/x-1.0.whl cannot be downloaded: the server answers 404"),
    ("      ERROR: No matching distribution found for hatchling\nerror: subprocess-exited-with-error\n",
     MissingRequirementError, "the build needs hatchling, which was not found"),
    ("error: The build backend returned an error\n  cause: ModuleNotFoundError: No module named 'nope'\n",
     SmolLM3Error, "the plugin cannot be built: there is no module 'nope'"),
    ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n",
     WriteError, "disk full"),
    ("ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/usr/lib'\n",
     WriteError, "the environment cannot be written: Permission denied"),
    ("ERROR: Exception:\nTraceback (most recent call last):\n  File \"x.py\", line 3\nKeyError: 'install'\n",
     SmolLM3Error, "pip failed: KeyError: 'install'"),
    ("", SmolLM3Error, "pip failed: it says nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "cls", "said"), CASES, ids=[case[2][:40] for case in CASES])
def test_a_failure_is_one_sentence_with_a_hint(text: str, cls: type[SmolLM3Error], said: str) -> None:
    error = failure(text, "pip", PINS)
    assert type(error) is cls and error.message.startswith(said), error.message
    assert error.hint and "\n" not in error.message


def test_a_met_constraint_is_not_a_conflict() -> None:
    """uv does not see a distribution of another directory; its text names the constraint that the plugin meets."""
    text = ("error: No solution found when resolving dependencies\n  cause: Because smollm3-finetune was not found in "
            "the provided package locations and all versions of acme depend on smollm3-finetune==0.1.0, we can "
            "conclude that all versions of acme cannot be used.\n")  # fmt: skip
    error = failure(text, "uv", PINS)
    assert isinstance(error, NotFound) and error.what == "smollm3-finetune"
