"""The optimizer of a run, if a plugin offers it: its selection, and checks before weights are read."""

from __future__ import annotations

from smollm3_finetune.api import Role
from smollm3_finetune.components.contract import described
from smollm3_finetune.components.kinds import ADAPTER, OPTIMIZER
from smollm3_finetune.components.negotiation import missing_ops, refined, usable
from smollm3_finetune.components.registry import Registry, attributed_to
from smollm3_finetune.components.requirements import requirement_problems
from smollm3_finetune.components.selection import SelectedComponent, choose_named
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.config.schema import DEFAULT_ADAPTER, TrainConfig
from smollm3_finetune.errors import ConfigError, IncompatibleError, raise_all
from smollm3_finetune.model.plan import ModelPlan
from smollm3_finetune.train.distributed.layout import Layout

WITHOUT = f"omit {OPTIMIZER.flag}"


def select_optimizer(registry: Registry, loaded: LoadedConfig) -> SelectedComponent | None:
    """The optimizer that the configuration names; None: `train.optimizer` decides.

    Raises ConfigError if both are set, and what `choose_named` raises.
    """
    config = loaded.config.optimizer
    train, origin = loaded.config.train.optimizer, loaded.origins.get("train.optimizer", "")
    stated = train != TrainConfig().optimizer or origin.startswith("-")  # a saved configuration states the default
    if config.name is not None and stated:
        raise ConfigError(
            f"{OPTIMIZER.flag} {config.name} and train.optimizer={train} cannot be used together: a run has one "
            "optimizer",
            hint=f"{WITHOUT}, or leave train.optimizer out",
        )
    return choose_named(registry, OPTIMIZER, config, loaded.origins)


def check_optimizer_fits(
    registry: Registry, optimizer: SelectedComponent | None, model: ModelPlan, layout: Layout
) -> None:
    """Check the optimizer's packages, and whether it works with the adapter and with what the processes share.

    Raises MissingRequirementError or IncompatibleError.
    """
    if optimizer is None:
        return
    assert model.adapter is not None
    raise_all(list(requirement_problems(optimizer.component.title, optimizer.spec.requires, model.env.device)))
    flag, spec = f"{OPTIMIZER.flag} {optimizer.spec.name}", optimizer.spec
    adapter = f"{ADAPTER.flag} {model.adapter.spec.name}"
    roles = frozenset(refined(model.adapter, model.env).roles)
    if missing := sorted(spec.needs_roles - roles):
        own = f"whose roles are {', '.join(sorted(roles))}" if roles else "which states no roles"
        raise IncompatibleError(
            f"{flag} needs trained parameters with the role {' and '.join(missing)}, but the adapter is "
            f"{model.adapter.spec.name}, {own}",
            hint=_with_roles(registry, spec.needs_roles, model),
        )
    if roles and roles <= spec.freezes:
        raise IncompatibleError(
            f"{flag} trains nothing of {adapter}: it freezes parameters with the role {' and '.join(sorted(roles))}",
            hint=_with_roles(registry, frozenset(), model, beyond=spec.freezes),
        )
    if layout.sharding != "none" and not spec.shards:
        raise IncompatibleError(
            f"{flag} does not work with {layout.sharding}: it needs whole parameters where the processes divide them",
            hint=f"{WITHOUT}; or give each process the whole model: --launcher torchrun",
        )


def _with_roles(
    registry: Registry, needed: frozenset[Role], model: ModelPlan, beyond: frozenset[Role] = frozenset()
) -> str:
    """The adapters that have these roles and others than `beyond`, and work with the quantizer of the run, as a hint.

    The default adapter comes first.
    """
    names = []
    for chosen in usable(registry, ADAPTER, model.env):
        roles = frozenset(refined(chosen, model.env).roles)
        if needed <= roles and roles - beyond and not missing_ops(model.quantizer, chosen, model.env):
            names.append(chosen.spec.name)
    if not names:
        return f"{WITHOUT}: no installed adapter has them"
    names.sort(key=lambda name: (name != DEFAULT_ADAPTER, name))
    others = f" (others that have it: {', '.join(names[1:])})" if names[1:] else ""
    return f"{ADAPTER.flag} {names[0]}{others}"


def state_bytes(optimizer: SelectedComponent, shape: tuple[int, ...], role: Role) -> int | None:
    """The bytes of the state of a float32 parameter, as the descriptor states them; None if it states none.

    Raises PluginError if the function fails or does not return a number of bytes.
    """
    function = optimizer.spec.state_bytes
    if function is None:
        return None
    with attributed_to(optimizer.component, "state_bytes()"):
        found = optimizer.component.waited(lambda: function(optimizer.options, shape, str(role)), "state_bytes")
        if not isinstance(found, int) or isinstance(found, bool) or found < 0:
            raise TypeError(f"it returned {described(found)}, not a number of bytes")
        return found
