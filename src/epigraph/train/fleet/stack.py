"""Many users' parameters of one method as one tensor each: what they make, their gradients, their optimisers.

Knows a method; does not know who the users are, nor what they learn from. Each of them is what a run of his own would
have: the same first values, and a state that has the same names. Legend: U users, P virtual tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from epigraph.errors import BadValue
from epigraph.frozen.answers import Head
from epigraph.methods.base import Maker, Method
from epigraph.train.fleet.optimizers import STACKED, StackedOptimizer
from epigraph.train.loop import groups
from epigraph.train.parts import TrainingPart

_METHOD, _OPTIMIZER = "method.", "optimizer."


class Stack:
    """Room for so many users of ``method``; the first :attr:`num` places are taken.

    ``method`` is what every one of them starts from; it is never changed. Raises :class:`BadValue` for one that makes
    no virtual tokens of its own, or trains the base.
    """

    def __init__(self, method: Method, plan: TrainingPart, lr: float, room: int) -> None:
        self.method = check_method(method)
        self.room, self.num = room, 0
        in_order = [(name, x, part["share"]) for part in groups(method, plan, lr) for name, x in part["params"]]
        self._shares = {name: share for name, _, share in in_order}
        self._first = {name: x.detach() for name, x, _ in in_order}
        self._values = {name: x.detach().new_zeros(room, *x.shape) for name, x, _ in in_order}
        self._max_grad_norm = plan.max_grad_norm
        self._optimizer: StackedOptimizer = STACKED[plan.optimizer](self._values, plan.weight_decay)
        self.live: dict[str, Tensor] = {}

    def enter(self) -> int:
        """A new user in the next place, which is returned, with the method's first values."""
        place = self.num
        for name, first in self._first.items():
            self._values[name][place] = first
            for x in self._optimizer.state[name].values():
                x[place].zero_()
        self._optimizer.num_steps.append(0)
        self.num += 1
        return place

    def leave(self, place: int) -> None:
        """The user in ``place`` goes; the last one takes it."""
        last = self.num - 1
        for name, x in self._values.items():
            for each in (x, *self._optimizer.state[name].values()):
                each[place] = each[last]
        self._optimizer.num_steps[place] = self._optimizer.num_steps[last]
        self._optimizer.num_steps.pop()
        self.num -= 1

    def begin(self, *, learns: bool = True) -> None:
        """From here on :attr:`live` is what everybody has now; where it ``learns``, leaves that collect gradients."""
        self.live = {name: x[: self.num].detach().requires_grad_(learns) for name, x in self._values.items()}

    def numbers(self) -> tuple[Tensor, ...]:
        """``[U, P, ...]`` each: :meth:`Maker.numbers` of every user, with the graph to :attr:`live`."""
        own = {name: x for name, x in self.live.items() if not name.startswith("head.")}
        if any(isinstance(x, nn.LSTM) for x in self.method.modules()):
            # torch has no LSTM of several weights at once.
            each = [self._numbers({name: x[place] for name, x in own.items()}) for place in range(self.num)]
            return tuple(torch.stack(x) for x in zip(*each, strict=True))
        made: tuple[Tensor, ...] = torch.vmap(self._numbers)(own)
        return made

    def head(self, users: slice, user_B: Tensor) -> Head | None:
        """The heads of some users for a batch whose rows are ``user_B``'s, counted from the first of them."""
        head = self.method.head
        if head is None:
            return None
        bias = self.live["head.bias"][users] if head.bias is not None else None
        return Head(weight_CD=self.live["head.weight"][users], bias_C=bias, reads=head.reads, user_B=user_B)

    def step(self, lrs: Sequence[float]) -> Tensor:
        """One step of all users, each by his own rate; ``[U]``: the norms of their gradients before clipping."""
        gradients = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in self.live.items()}
        each = [torch.linalg.vector_norm(x.flatten(1), dim=1) for x in gradients.values()]
        norm_U = torch.linalg.vector_norm(torch.stack(each, dim=1), dim=1)
        less_U = (self._max_grad_norm / (norm_U + 1e-6)).clamp(max=1.0)
        self._optimizer.num_steps = [n + 1 for n in self._optimizer.num_steps]
        for name, gradient in gradients.items():
            clipped = gradient * less_U.view(-1, *[1] * (gradient.ndim - 1))
            share = self._shares[name]
            self._optimizer.move(name, self._values[name][: self.num], clipped, [lr * share for lr in lrs])
        self.live = {}
        norms_U: Tensor = norm_U
        return norms_U

    def parameters_of(self, place: int) -> dict[str, Tensor]:
        """One user's parameters as they are, copied to the CPU."""
        return {name: x[place].detach().to("cpu", copy=True) for name, x in self._values.items()}

    def method_of(self, parameters: Mapping[str, Tensor]) -> Method:
        """The method with a user's parameters, on the method's device."""
        made = copy.deepcopy(self.method)
        made.load_state_dict(parameters, strict=False)
        return made

    def state_of(self, place: int) -> dict[str, Tensor]:
        """What :func:`epigraph.train.state.gather` gives of a run of his own: its ``method.`` and ``optimizer.``."""
        tensors = {f"{_METHOD}{name}": x for name, x in self.method.state_dict().items()}
        for number, (name, x) in enumerate(self._values.items()):
            tensors[f"{_METHOD}{name}"] = x[place]
            tensors[f"{_OPTIMIZER}{number}.step"] = torch.tensor(float(self._optimizer.num_steps[place]))
            for key, moment in self._optimizer.state[name].items():
                tensors[f"{_OPTIMIZER}{number}.{key}"] = moment[place]
        return {name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}

    def put_back(self, place: int, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`state_of`."""
        for number, (name, x) in enumerate(self._values.items()):
            x[place] = tensors[f"{_METHOD}{name}"].to(x)
            for key, moment in self._optimizer.state[name].items():
                moment[place] = tensors[f"{_OPTIMIZER}{number}.{key}"].to(moment)
        self._optimizer.num_steps[place] = int(tensors[f"{_OPTIMIZER}0.step"])

    def _numbers(self, parameters: dict[str, Tensor]) -> tuple[Tensor, ...]:
        given = {f"made.{name}": x for name, x in parameters.items()}
        made: tuple[Tensor, ...] = functional_call(_Numbers(self.method), given)
        return made


class _Numbers(nn.Module):
    """A method's numbers as a module's forward, which is what torch can call with other parameters."""

    def __init__(self, made: Maker) -> None:
        super().__init__()
        self.made = made

    def forward(self) -> tuple[Tensor, ...]:
        return self.made.numbers()


def check_method(method: Method) -> Maker:
    """``method`` as many users can be trained on it; raises :class:`BadValue`."""
    if not isinstance(method, Maker):
        raise BadValue(
            f"a fleet trains virtual tokens on one frozen base, got {type(method).__name__}, which makes none; "
            "use prefix-tuning, prompt-tuning or p-tuning"
        )
    if method.base is not None:
        raise BadValue("a fleet's users share one frozen base, got training.base_lr, which trains it; leave it out")
    return method


def bytes_per_user(method: Method, optimizer: str) -> int:
    """What a user takes on the device while he trains: parameters, gradients, moments, and what they make, twice."""
    each = sum(x.numel() * x.element_size() for x in method.parameters() if x.requires_grad)
    with torch.no_grad():
        made = sum(x.numel() * x.element_size() for x in check_method(method).numbers())
    return each * (2 + len(STACKED[optimizer].moments)) + 2 * made
