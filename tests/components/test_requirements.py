"""Requirements of a component, compared with the installed distributions, without importing them."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from smollm3_finetune.api import Requires
from smollm3_finetune.components.requirements import installed_version, requirement_problems, unmet_distributions
from smollm3_finetune.errors import PluginError


def test_an_installed_distribution_meets_a_requirement_without_being_imported(fake_distribution: Any) -> None:
    fake_distribution("acme-kernels", "1.4.2", {"acme_kernels": "raise RuntimeError('imported')\n"})
    requires = Requires(distributions=("acme-kernels>=1.4,<2", "Acme_Kernels"))
    assert unmet_distributions(requires) == []
    assert installed_version("acme-kernels") == "1.4.2"
    assert "acme_kernels" not in sys.modules


def test_a_missing_distribution_gets_the_install_command() -> None:
    (problem,) = requirement_problems("quantizer 'q'", Requires(distributions=("acme-missing>=2",)), "cpu")
    assert problem.message == "quantizer 'q' requires acme-missing>=2, but it is not installed"
    assert problem.hint == "pip install 'acme-missing>=2'"
    assert problem.exit_code == 4


def test_a_wrong_version_is_named(fake_distribution: Any) -> None:
    fake_distribution("acme-kernels", "1.4.2")
    (problem,) = requirement_problems("adapter 'a'", Requires(distributions=("acme-kernels>=2",)), "cpu")
    assert "requires acme-kernels>=2, but acme-kernels 1.4.2 is installed" in problem.message


def test_a_development_version_meets_a_requirement(fake_distribution: Any) -> None:
    fake_distribution("acme-kernels", "2.1.dev3")
    assert unmet_distributions(Requires(distributions=("acme-kernels>=2",))) == []


def test_requirements_with_false_markers_are_ignored() -> None:
    requires = Requires(distributions=("acme-missing; python_version<'3'", "acme-gone; python_version>='3'"))
    assert [text for text, _ in unmet_distributions(requires)] == ["acme-gone; python_version>='3'"]


def test_every_unmet_requirement_is_a_separate_problem() -> None:
    requires = Requires(distributions=("acme-one", "acme-two"), accelerators=("cuda",))
    problems = requirement_problems("quantizer 'q'", requires, "cpu")
    assert len(problems) == 3
    assert problems[2].message == "quantizer 'q' runs on cuda only, but this run is on cpu"


def test_an_accelerator_with_any_index_meets_the_requirement() -> None:
    requires = Requires(accelerators=("cuda", "xpu"))
    assert requirement_problems("quantizer 'q'", requires, "cuda:1") == []
    assert requirement_problems("quantizer 'q'", requires, "xpu") == []
    assert len(requirement_problems("quantizer 'q'", requires, "mps")) == 1


def test_a_requirement_that_is_none_is_the_plugins_fault() -> None:
    with pytest.raises(PluginError, match="'two words', which is not a valid requirement"):
        unmet_distributions(Requires(distributions=("two words",)))
