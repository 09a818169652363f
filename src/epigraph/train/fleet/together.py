"""Steps that many users take together: one pass of the model over all their rows, each row behind its own user's.

Knows a frozen model and members; does not know folders, claims or checkpoints. Each user's numbers are what they would
be in a run of his own, up to rounding. Legend: U users, B rows, S scored tokens, P virtual tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from epigraph.errors import TrainingFailed, UserError
from epigraph.frozen.answers import Head, scored_rows
from epigraph.frozen.batch import collate, length
from epigraph.frozen.inputs import Encoded, fill_token
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.rows import Stacked
from epigraph.methods.base import Method
from epigraph.train.development import dev_score
from epigraph.train.fleet.member import Member, Window
from epigraph.train.fleet.stack import Stack
from epigraph.train.loss import token_losses
from epigraph.train.prepare import Prepared
from epigraph.train.run import plan_of
from epigraph.train.state import State

# A user's row: who, counted from the first user of the pass, and what is read.
Row = tuple[int, Encoded]


class Together:
    """Users on one frozen model, at most ``room`` of them at a time, ``num_rows`` rows in one pass of the model.

    ``method`` is what each starts from, and ``generator_state`` torch's global generator once it was made: the two are
    the same in a run of anybody's own, which has the same seed.
    """

    def __init__(self, ready: Prepared, method: Method, *, room: int, num_rows: int) -> None:
        self._generator_state = torch.get_rng_state()
        self._frozen: FrozenModel = ready.frozen
        self._fill = fill_token(ready.frozen.tokenizer)
        self._num_rows = num_rows
        self._stack = Stack(method.to(ready.frozen.device), plan_of(ready, method), ready.recipe.lr, room)
        self.members: list[Member] = []
        ready.frozen.checkpoint_activations(ready.recipe.training.checkpoint_activations)

    @property
    def has_room(self) -> bool:
        """One more can enter."""
        return len(self.members) < self._stack.room

    def enter(self, name: str, ready: Prepared, begin: State | None = None) -> Member:
        """One more user, from the beginning or from a state of his."""
        plan = plan_of(ready, self._stack.method)
        member = Member(name, ready, plan, self._generator_state, begin)
        place = self._stack.enter()
        if begin is not None:
            self._stack.put_back(place, begin.tensors)
        self.members.append(member)
        return member

    def leave(self, member: Member) -> None:
        """His place is free."""
        place = self.members.index(member)
        self._stack.leave(place)
        last = self.members.pop()
        if last is not member:
            self.members[place] = last

    def state(self, member: Member) -> State:
        """His run as one of his own would be saved."""
        return member.state(self._stack.state_of(self.members.index(member)))

    def result(self, member: Member) -> Method:
        """The method with what is kept of his: the best development score's, or the last."""
        return self._stack.method_of(member.best.parameters or self._now(member))

    def step(self) -> dict[str, UserError]:
        """One step of everybody, and the development scores that are due. Who failed has left, with his reason here."""
        members = list(self.members)
        windows = [member.window() for member in members]
        divisors = [member.denominator(window) for member, window in zip(members, windows, strict=True)]
        totals = self._gradients(members, windows, divisors)
        lrs = [member.lr for member in members]
        norms = self._stack.step(lrs).tolist()
        for member, window, total, norm, lr in zip(members, windows, totals, norms, lrs, strict=True):
            member.took(window, total, norm, lr)
        failed: dict[str, UserError] = {
            member.name: TrainingFailed(f"the loss became {total}; lower training.lr or raise training.warmup_steps")
            for member, total in zip(members, totals, strict=True)
            if not math.isfinite(total)
        }
        due = [member for member in members if member.is_scored and member.name not in failed]
        failed |= self._score(due)
        for member in members:
            if member.name in failed:
                self.leave(member)
        return failed

    def _gradients(
        self, members: Sequence[Member], windows: Sequence[Window], divisors: Sequence[float]
    ) -> list[float]:
        """Leave everybody's gradients in the stack; the sums of their token losses, in nats."""
        stack = self._stack
        stack.begin()
        made = stack.numbers()
        # What virtual tokens are made of is read by several passes, and goes back to the parameters once.
        leaves = tuple(x.detach().requires_grad_() for x in made)
        weight_U = torch.tensor(divisors, dtype=leaves[0].dtype, device=leaves[0].device).reciprocal()
        total_U = torch.zeros_like(weight_U)
        for batches in zip(*windows, strict=True):
            masks = self._masks(members, leaves[0])
            for users in self._passes([len(batch) for batch in batches]):
                rows = [(user, row) for user, batch in enumerate(batches[users]) for row in batch]
                first, *rest = (x[users] for x in leaves)
                first = first if masks is None else first * masks[users]
                losses_S, user_S = self._losses(rows, (first, *rest), users)
                (losses_S * weight_U[users][user_S]).sum().backward()
                total_U[users] += torch.zeros_like(total_U[users]).index_add_(0, user_S, losses_S.detach().to(total_U))
        torch.autograd.backward(made, [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves])
        return [float(x) for x in total_U.tolist()]

    def _losses(self, rows: Sequence[Row], numbers: Sequence[Tensor], users: slice) -> tuple[Tensor, Tensor]:
        """``[S]`` the token losses of one pass, and ``[S]`` whose they are, counted from the first user of the pass."""
        frozen, row_of = self._frozen, [user for user, _ in rows]
        batch = collate([row for _, row in rows], self._fill).to(frozen.device)
        user_B = torch.tensor(row_of, device=frozen.device)
        head: Head | None = self._stack.head(users, user_B)
        tokens = Stacked(tokens=self._stack.method.tokens(*numbers), row_of=row_of)
        losses_S = token_losses(frozen, batch, tokens, head)
        return losses_S, user_B[scored_rows(frozen, batch)]

    def _passes(self, sizes: Sequence[int]) -> Iterator[slice]:
        """Users in a row whose rows are few enough for one pass; a user's rows are never parted."""
        start, held = 0, 0
        for number, size in enumerate(sizes):
            if held and held + size > self._num_rows:
                yield slice(start, number)
                start, held = number, 0
            held += size
        yield slice(start, len(sizes))

    def _masks(self, members: Sequence[Member], like: Tensor) -> Tensor | None:
        """``[U, P, N]``: everybody's dropout of this pass, each drawn from his own generator."""
        share = self._stack.method.dropout
        if not share:
            return None
        return torch.stack([x.mask(like.shape[1:], like.dtype, share) for x in members]).to(like.device)

    def _score(self, due: Sequence[Member]) -> dict[str, UserError]:
        """Score those whose score is due; the reasons of those who could not be."""
        failed: dict[str, UserError] = {}
        by_loss = [x for x in due if x.plan.dev_metric == "loss"]
        for member, loss in zip(by_loss, self._dev_losses(by_loss), strict=True):
            member.scored({"loss": loss}, self._now(member))
        for member in due:
            if member.plan.dev_metric != "loss":
                try:
                    now = self._now(member)
                    member.scored(dev_score(member.ready)(self._stack.method_of(now)), now)
                except UserError as wrong:
                    failed[member.name] = wrong
        return failed

    @torch.no_grad()
    def _dev_losses(self, members: Sequence[Member]) -> list[float]:
        """Each one's mean negative log-likelihood, in nats, of the scored tokens of his development rows."""
        if not members:
            return []
        self._stack.begin(learns=False)
        made = self._stack.numbers()
        sums_UC = torch.zeros(len(self.members), 2, dtype=torch.float64)
        places = {self.members.index(x): x for x in members}
        rows = [(place, row) for place, x in places.items() for row in x.ready.dev_rows]
        rows.sort(key=lambda x: -length(x[1]))
        num_rows = max(16, self._num_rows)
        for start in range(0, len(rows), num_rows):
            losses_S, user_S = self._losses(rows[start : start + num_rows], made, slice(0, len(self.members)))
            both_SC = torch.stack([losses_S.double(), torch.ones_like(losses_S, dtype=torch.float64)], dim=1)
            sums_UC.index_add_(0, user_S.cpu(), both_SC.cpu())
        return [float(sums_UC[place, 0] / sums_UC[place, 1].clamp(min=1)) for place in places]

    def _now(self, member: Member) -> Mapping[str, Tensor]:
        return self._stack.parameters_of(self.members.index(member))
