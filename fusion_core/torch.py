r"""Training a fused or grown network on in PyTorch: learning rates and optimizer states across the growth.

``growth.json``, which is written beside fused and grown weights, has for each tensor the factor on its learning rate with
which the logits go on at their velocity. ``param_groups`` makes an optimizer's groups of it; ``grow_optimizer`` makes the
grown network's optimizer from the small one's, moments and step counts included, by the rules of
``fusion_core.growth.moments``. docs/pytorch.md has an example and what it does to the loss.

PyTorch is the extra ``torch``; it is imported when a function is called. Moments pass through JAX on the CPU, tensor by
tensor, in float64.
"""

from __future__ import annotations

import inspect
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core.checkpoints.growth_file import GrowthRecord, read_growth
from fusion_core.errors import InputError
from fusion_core.growth.maps import Rule
from fusion_core.growth.moments import Factored, factored_moment, first_moment, second_moment, spread
from fusion_core.models.units import by_name

# optimizer, by its class's name in lower case -> how its update goes with gradient and parameter (``growth.rates.UPDATES``)
OPTIMIZERS = {"sgd": "sgd", "adafactor": "adafactor"} | dict.fromkeys(
    ("adam", "adamw", "adamax", "nadam", "rmsprop", "adagrad"), "adam"
)
DECOUPLED = ("sgd", "adamw", "adafactor")  # the decay of an entry a step is rate · decay · entry
# model_type -> names that transformers 5 gives to what files call otherwise
IN_FILES = {"gpt_neox": {"lm_head.weight": "embed_out.weight"}}
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # of a group; schedulers write the later ones
FIRST = ("exp_avg", "momentum_buffer")
SECOND = ("exp_avg_sq", "max_exp_avg_sq", "variance", "sum")
FACTORED = {"row_var": "col_var", "exp_avg_sq_row": "exp_avg_sq_col"}  # torch's and transformers' Adafactor


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise InputError("fusion_core.torch needs PyTorch; pip install 'deepfusion[torch]'") from None
    return torch


def param_groups(
    model: Any,
    folder: str | pathlib.Path | GrowthRecord,
    lr: float,
    optimizer: str = "adamw",
    *,
    weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    r"""Return parameter groups with which a new optimizer moves the grown network's logits as the small one's were moved.

    .. math:: \text{lr}_i = r_i \, \text{lr}

    with the factors :math:`r_i` of ``growth.json``. The groups are for any ``torch.optim`` optimizer and, through
    ``optimizers=(optimizer, None)``, for transformers' ``Trainer``; schedulers multiply each group's rate.

    Args:
      model: the grown network in PyTorch, as ``from_pretrained(folder)`` gives it; it may be wrapped by
        DistributedDataParallel or ``torch.compile``. Parameters that require no gradient are left out.
      folder: the folder that ``fuse`` or ``grow`` wrote, its ``growth.json``, or what ``read_growth`` read.
      lr: the small network's learning rate.
      optimizer: name of the optimizer: ``"sgd"``, ``"adam"``, ``"adamw"``, ``"adamax"``, ``"nadam"``, ``"rmsprop"``,
        ``"adagrad"`` or ``"adafactor"``. Take ``"adam"`` for an Adafactor that does not scale by the
        parameters' root mean square.
      weight_decay: the small network's weight decay; each group's is such that an entry decays as fast as before. If None,
        the groups say nothing of it.

    Returns:
      One group for each factor: ``params``, ``lr`` and, if given, ``weight_decay``.

    Raises:
      InputError: PyTorch is missing; the folder has no ``growth.json``; the model is not the folder's; the optimizer is
        unknown; the rate or the decay is not a number that it can be.
    Source: theory.md, section 5.
    """
    _torch()
    update = OPTIMIZERS.get(optimizer.lower() if isinstance(optimizer, str) else "")
    if update is None:
        raise InputError(f"the optimizer is {optimizer!r}; there are factors for {', '.join(OPTIMIZERS)}")
    for what, value, least in (("lr", lr, "positive"), ("weight_decay", weight_decay or 0.0, "not negative")):
        if not math.isfinite(value) or value < 0 or (least == "positive" and value == 0):
            raise InputError(f"{what} is {value!r}; it must be finite and {least}")
    record = _record(folder)
    groups: dict[tuple[float, ...], dict[str, Any]] = {}
    for name, parameter in _grown_parameters(model, record).items():
        if not parameter.requires_grad:
            continue
        factor = record.tensors[name]["factors"][update]
        group = {"params": [], "lr": lr * factor}
        if weight_decay is not None:
            coupled = optimizer.lower() not in DECOUPLED
            group["weight_decay"] = weight_decay * _decay(record.tensors[name], factor, coupled=coupled)
        numbers = tuple(value for key, value in group.items() if key != "params")
        groups.setdefault(numbers, group)["params"].append(parameter)
    if not groups:
        raise InputError("no parameter of the model requires a gradient; unfreeze those that are to be trained")
    return list(groups.values())


def grow_optimizer(
    optimizer: Any,
    small_model: Any,
    grown_model: Any,
    growth: str | pathlib.Path | GrowthRecord,
    *,
    factors: bool = True,
) -> Any:
    """Return the grown network's optimizer: the small one's with its moments, step counts and rates across the growth.

    Gradient averages are multiplied by the gradient's factor a, second moments by a², in the blocks between equal copies
    too; between different sources they are estimated (``fusion_core.growth.moments``). Each group of the small optimizer
    becomes one for each factor; its other options are kept, and the weight decay is such that an entry decays as fast as
    before. With it the logits' velocity is continuous for equal copies, as far as the moments are above epsilon.

    Args:
      optimizer: the small network's: SGD, Adam, AdamW, NAdam, Adagrad or Adafactor of ``torch.optim``, or
        transformers' Adafactor. For a fusion of k different networks a sequence of k, of one kind.
      small_model: the network that it trains, as it was when it was grown; for k different ones a sequence.
      grown_model: the grown network, as ``from_pretrained(folder)`` gives it.
      growth: the folder that ``fuse`` or ``grow`` wrote, its ``growth.json``, or what ``read_growth`` read.
      factors: whether rates are multiplied with the factors that keep the velocity; if not, groups keep their options.

    Returns:
      An optimizer of the same class. Parameters that the small optimizer does not train, or that require no gradient, are
      left out.

    Raises:
      InputError: PyTorch is missing; there is no ``growth.json``, or its operator keeps nothing of the network; a model is not
        the file's; the optimizer holds other parameters, is of an unknown kind, or ignores the groups' rates.
    Source: docs/t5_fusion.md, Optimizer state; theory.md, section 5.
    """
    torch = _torch()
    record = _record(growth)
    mapping = record.mapping()
    optimizers = _each_source(optimizer, record, "optimizer")
    models = _each_source(small_model, record, "small_model")
    update = _update_of(optimizers)
    if factors:
        _check_rates(optimizers[0])
    grown = _grown_parameters(grown_model, record)
    shapes = mapping.shapes if mapping.several else (mapping.shapes,)
    small = [_small_parameters(*pair) for pair in zip(models, shapes, strict=True)]
    for one, parameters in zip(optimizers, small, strict=True):
        _check_trains(one, parameters.values())
    group_of = {p: i for i, group in enumerate(optimizers[0].param_groups) for p in group["params"]}

    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    states: dict[Any, dict[str, Any]] = {}
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        for name, rule in by_name(mapping.rules).items():
            parts = [None if b.network is None else (b.network, small[b.network][b.name]) for b in rule.blocks]
            number = next((group_of[p] for i, p in filter(None, parts) if i == 0 and p in group_of), None)
            if number is None or not grown[name].requires_grad:
                continue
            found = [None if part is None else optimizers[part[0]].state.get(part[1]) for part in parts]
            if any(found):
                grow = _StateGrowth(torch, rule, record.event.equal or not mapping.several, record.tensors[name])
                states[grown[name]] = grow(found, type(optimizers[0]).__name__, grown[name])
            options = _options(optimizers[0].param_groups[number], record.tensors[name], update if factors else None)
            key = (number, record.tensors[name]["factors"][update] if factors else 1.0, options.get("weight_decay"))
            groups.setdefault(key, options | {"params": []})["params"].append(grown[name])
    made = _like(optimizers[0], list(groups.values()))
    made.state.update(states)
    return made


def _record(growth: str | pathlib.Path | GrowthRecord) -> GrowthRecord:
    return growth if isinstance(growth, GrowthRecord) else read_growth(growth)


# Models and their parameters


def _parameters(model: Any) -> dict[str, Any]:
    """Return a model's parameters by the names of its checkpoint: those of wrappers are cut off; tied ones appear once."""
    if not hasattr(model, "named_parameters"):
        raise InputError(f"a model is a {type(model).__name__}; give the torch.nn.Module")

    def plain(name: str) -> str:
        while cut := next((wrapper for wrapper in WRAPPERS if name.startswith(wrapper)), ""):
            name = name.removeprefix(cut)
        return name

    in_files = IN_FILES.get(getattr(getattr(model, "config", None), "model_type", ""), {})
    return {in_files.get(plain(name), plain(name)): parameter for name, parameter in model.named_parameters()}


def _checked(found: dict[str, Any], wanted: Mapping[str, Sequence[int]], what: str, remedy: str) -> dict[str, Any]:
    """Return the parameters if their names and shapes are the wanted ones. Raises InputError if they are not."""
    for name, parameter in found.items():
        if name not in wanted:
            raise InputError(f"{what} has the parameter {name}, which the growth does not know; {remedy}")
        if tuple(parameter.shape) != tuple(wanted[name]):
            raise InputError(
                f"{what}: {name} has shape {tuple(parameter.shape)}, but the growth's is {tuple(wanted[name])}; {remedy}"
            )
    missing = [name for name in wanted if name not in found]
    if missing:
        raise InputError(f"{what} lacks the parameter {missing[0]} (of {len(missing)} that it lacks); {remedy}")
    return found


def _grown_parameters(model: Any, record: GrowthRecord) -> dict[str, Any]:
    wanted = {name: facts["shape"] for name, facts in record.tensors.items()}
    remedy = "load the model from the folder of growth.json, with the class that has its head"
    return _checked(_parameters(model), wanted, "the grown model", remedy)


def _small_parameters(model: Any, shapes: Any) -> dict[str, Any]:
    wanted = {name: struct.shape for name, struct in by_name(shapes).items()}
    return _checked(
        _parameters(model), wanted, "the small model", "give the model that was grown, one for each source in order"
    )


def _each_source(given: Any, record: GrowthRecord, what: str) -> list[Any]:
    """Return one of the given things for each source; a single one is that of all if the sources are equal."""
    several = list(given) if isinstance(given, list | tuple) else [given]
    several = [getattr(one, "optimizer", one) for one in several]  # what accelerate wraps
    number = len(record.sources)
    if len(several) == 1 and (record.event.equal or number == 1):
        return several * number
    if len(several) != number:
        raise InputError(
            f"{what} has {len(several)} entries, but {number} networks were fused; give one each, in their order"
        )
    return several


# Groups


def _update_of(optimizers: Sequence[Any]) -> str:
    """Return how the optimizer's update goes with gradient and parameter."""
    kinds = {type(one).__name__ for one in optimizers}
    names = [kind.__name__.lower() for kind in type(optimizers[0]).__mro__]
    found = next((OPTIMIZERS[name] for name in names if name in OPTIMIZERS), None)
    if len(kinds) > 1 or found is None:
        raise InputError(f"the optimizer is {' and '.join(sorted(kinds))}; one of {', '.join(OPTIMIZERS)} can be grown")
    unscaled = any(group.get("scale_parameter") is False for group in optimizers[0].param_groups)
    return "adam" if unscaled else found


def _check_rates(optimizer: Any) -> None:
    """Raise InputError if the optimizer's update does not go with its groups' rates."""
    for group in optimizer.param_groups:
        if group.get("relative_step"):
            raise InputError(
                "Adafactor with relative_step=True ignores its groups' rates; make it with relative_step=False and a rate"
            )
        steps = [float(s["step"]) for p in group["params"] if (s := optimizer.state.get(p)) and "row_var" in s]
        highest = 1 / math.sqrt(max(steps, default=0.0) + 1)
        if steps and float(group["lr"]) > highest:
            raise InputError(
                f"torch's Adafactor takes the smaller of lr ({float(group['lr']):g}) and 1/√step ({highest:.4g}), so that "
                f"factors on lr would be lost; set lr to {highest:.4g} or less"
            )


def _check_trains(optimizer: Any, parameters: Iterable[Any]) -> None:
    known = set(parameters)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    strange = sum(p not in known for p in held)
    if strange:
        raise InputError(
            f"{strange} of the optimizer's {len(held)} parameters are not the small model's; give the model that it trains"
        )


def _decay(facts: Mapping[str, Any], factor: float, *, coupled: bool, by_size: bool = False) -> float:
    """Return the factor on the weight decay with which entries decay as fast as before.

    Args:
      facts: of the tensor, in ``growth.json``.
      factor: on its learning rate.
      coupled: whether the decay is added to the gradient before it is normalized: it then has the gradient's factor.
      by_size: whether the decay goes with the parameter's root mean square (transformers' Adafactor).
    """
    rho = facts["rho"] or 1.0
    if coupled:
        return (facts["a"] or 1.0) / rho
    return 1 / (factor * rho if by_size else factor)


def _options(group: Mapping[str, Any], facts: Mapping[str, Any], update: str | None) -> dict[str, Any]:
    """Return the options of a group of the grown optimizer; without an update they are the small one's."""
    options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    if update is None:
        return options
    factor = facts["factors"][update]
    for key in RATES:
        if options.get(key) is not None:
            options[key] = options[key] * factor
    if options.get("weight_decay"):
        normalized = update == "adam" and "scale_parameter" not in group
        coupled = normalized and not group.get("decoupled_weight_decay", False)
        options["weight_decay"] *= _decay(facts, factor, coupled=coupled, by_size=bool(group.get("scale_parameter")))
    return options


def _like(optimizer: Any, groups: list[dict[str, Any]]) -> Any:
    """Return an optimizer of the same class and defaults on other groups."""
    if not groups:
        raise InputError(
            "the optimizer trains no parameter that the grown model trains; unfreeze those that are to be trained"
        )
    known = inspect.signature(type(optimizer).__init__).parameters
    return type(optimizer)(groups, **{key: value for key, value in optimizer.defaults.items() if key in known})


# States


class _StateGrowth:
    """The growth of one tensor's optimizer state, by the tensor's rule."""

    def __init__(self, torch: Any, rule: Rule, copies: bool, facts: Mapping[str, Any]) -> None:
        self.torch, self.rule, self.copies, self.facts = torch, rule, copies, facts

    def __call__(self, states: Sequence[Mapping[str, Any] | None], owner: str, parameter: Any) -> dict[str, Any]:
        """Return the state; ``states`` has one for each part of the tensor, or None."""
        one = next(state for state in states if state)
        grown: dict[str, Any] = {}
        for key, value in one.items():
            if key in FACTORED:
                grown |= self._factored(states, key, parameter)
            elif key in FACTORED.values():
                continue
            elif not isinstance(value, self.torch.Tensor) or value.ndim == 0:
                grown[key] = self._counted(value, parameter)
            elif key in FIRST and "RMS" in one:  # transformers' Adafactor averages updates, not gradients
                grown[key] = self._moment(states, key, self._update, parameter)
            elif key in FIRST:
                grown[key] = self._moment(states, key, first_moment, parameter)
            elif key in SECOND:
                grown[key] = self._moment(states, key, second_moment, parameter)
            else:
                raise InputError(
                    f"the optimizer {owner} keeps {key!r} for its parameters, for which no growth rule is known; SGD, Adam, "
                    "AdamW, NAdam, Adagrad and Adafactor can be grown, or start a new optimizer on param_groups"
                )
        return grown

    def _counted(self, value: Any, parameter: Any) -> Any:
        """Return a copy of a count or another number; those that are on a device, on the grown parameter's."""
        if not isinstance(value, self.torch.Tensor):
            return value
        return value.clone() if value.device.type == "cpu" else value.to(parameter.device, copy=True)

    def _moment(self, states: Sequence[Any], key: str, function: Callable[..., Any], parameter: Any) -> Any:
        like = next(state[key] for state in states if state)
        values = [self._to_jax(state[key]) if state else None for state in states]
        return self._to_torch(function(self.rule, values, copies=self.copies), like, parameter)

    def _update(self, rule: Rule, values: Sequence[Any], *, copies: bool) -> Any:
        """Return an average of updates, which have their rates: every copy gets ``1 / (N a)`` of it, Adam's factor."""
        share = self.facts["factors"]["adam"]
        if copies and not rule.new:
            return spread(rule, values[0]) * share
        return rule.placed(values, [share] * len(values), divide=None)

    def _factored(self, states: Sequence[Any], key: str, parameter: Any) -> dict[str, Any]:
        """Return the means over the last and over the last but one axis; torch's keep an axis of length one."""
        like = next(state for state in states if state)
        ndim, kept = len(self.rule.shape), key == "row_var"

        def moment(state: Any) -> Factored:
            row, col = (self._to_jax(state[k]) for k in (key, FACTORED[key]))
            if kept:
                row, col = jnp.squeeze(row, -1), jnp.squeeze(col, -2)
            shape = (*row.shape, col.shape[-1])
            return Factored(row, col, jnp.zeros(1, row.dtype), shape, (ndim - 2, ndim - 1))

        found = factored_moment(self.rule, [moment(s) if s else None for s in states], copies=self.copies)
        row, col = found.v_row, found.v_col
        if kept:
            row, col = jnp.expand_dims(row, -1), jnp.expand_dims(col, -2)
        return {
            key: self._to_torch(row, like[key], parameter),
            FACTORED[key]: self._to_torch(col, like[FACTORED[key]], parameter),
        }

    def _to_jax(self, tensor: Any) -> Any:
        wide = self.torch.float64 if tensor.dtype == self.torch.float64 else self.torch.float32
        return jnp.asarray(tensor.detach().to("cpu", wide).numpy(), jnp.float64)

    def _to_torch(self, array: Any, like: Any, parameter: Any) -> Any:
        return self.torch.from_numpy(np.array(array)).to(device=parameter.device, dtype=like.dtype)
