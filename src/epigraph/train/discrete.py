"""Searching for words in the place of virtual tokens: by gradient which to try, and by trying which to take.

AutoPrompt (Shin et al. 2020, section 2.2). Takes the steps of the one training loop; does not know tasks or recipes.
Legend: P virtual tokens, N candidates, C a chunk of the vocabulary, E width of embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from epigraph.frozen.inputs import Encoded, frequent_ids
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.neighbours import embedded
from epigraph.methods.base import Method
from epigraph.train.batches import Share
from epigraph.train.best import Best
from epigraph.train.loop import Descent, Outcome, Parts, train
from epigraph.train.loss import head_of, token_losses
from epigraph.train.parallel import Processes
from epigraph.train.parts import TrainingPart
from epigraph.train.state import Position
from epigraph.train.stop import Stop
from epigraph.virtual import SoftPrompt

_CHUNK = 4_096


class Triggers(Method):
    """Words ``ids_P`` of a model's vocabulary, as its embeddings ``rows_PE`` of them, which get gradients and no steps.

    ``num_candidates`` are tried a step. ``placed``: they stand at the places of a template.
    """

    def __init__(self, ids: Sequence[int], rows_PE: Tensor, *, num_candidates: int, placed: bool) -> None:
        super().__init__()
        self.num_candidates = num_candidates
        self.placed = placed
        self.register_buffer("ids_P", torch.tensor(list(ids)))
        self.ids_P: Tensor
        self.rows_PE = nn.Parameter(rows_PE.detach().float().clone())

    def forward(self) -> SoftPrompt:
        """The words' embeddings, ``[P, E]`` float32."""
        return SoftPrompt(embeddings_PE=self.rows_PE, placed=self.placed)

    def with_word(self, place: int, row_E: Tensor) -> SoftPrompt:
        """What it would be with another word at ``place``."""
        rows_PE = self.rows_PE.detach().clone()
        rows_PE[place] = row_E
        return SoftPrompt(embeddings_PE=rows_PE, placed=self.placed)

    def take(self, place: int, token_id: int, row_E: Tensor) -> None:
        """Let the word at ``place`` be that one."""
        with torch.no_grad():
            self.ids_P[place] = token_id
            self.rows_PE[place] = row_E


class Search:
    """One word a step: of the ``num_candidates`` whose embeddings the gradient at one place promises most of, the one
    with the lowest loss on rows that the gradient has not seen, if that is lower than the present word's there.

    A step takes two windows of batches, one for the gradient and one for the trials. The place is drawn from torch's
    global generator. Special and unused tokens are no candidates. The authors score trials of classification by
    accuracy, we by the loss everywhere; dev scores are taken when the run says, and not after every change.
    """

    num_windows = 2

    def __init__(
        self,
        frozen: FrozenModel,
        method: Method,
        plan: TrainingPart,
        rows: Sequence[Encoded],
        lr: float,
        processes: Processes,
        stop: Stop,
    ) -> None:
        assert isinstance(method, Triggers), "words are searched for by Triggers"
        # Its optimiser is never stepped, and has no state.
        self._descent = Descent(frozen, method, plan, rows, lr, processes, stop)
        self._frozen, self._processes, self._triggers = frozen, processes, method
        self._words = words(frozen)

    @property
    def best(self) -> Best:
        """The best development score so far."""
        return self._descent.best

    @property
    def parts(self) -> Parts:
        """What :func:`gather` and :func:`put_back` take."""
        return self._descent.parts

    def position(self, step: int, tokens: int, seconds: float) -> Position:
        """Where the run is after ``step``."""
        return self._descent.position(step, tokens, seconds)

    def step(self, shares: Sequence[Share], lr: float) -> dict[str, Any]:
        """Try words at one place; the record has the place, the word there now, and how many forwards it took.

        A forward is one batch of ``training.batch_size`` rows, of which a gradient's is one too.
        """
        del lr
        half = len(shares) // 2
        triggers = self._triggers
        loss, tokens = self._descent.gradients(shares[:half])
        gradient_PE = triggers.rows_PE.grad
        assert gradient_PE is not None
        place = int(torch.randint(len(gradient_PE), ()))
        ids = self._promising(place, gradient_PE[place])
        rows_NE = self._frozen.embed(ids).float()
        losses, tried = self._losses(shares[half:], place, rows_NE)
        best = int(losses.argmin())
        if best:
            triggers.take(place, ids[best - 1], rows_NE[best - 1])
        norm = float(gradient_PE.norm())
        self._descent.optimizer.zero_grad()
        return {
            "loss": loss,
            "grad_norm": norm,
            "tokens": tokens + tried,
            "lr": 0.0,
            "place": place,
            "word": _token(self._frozen, int(triggers.ids_P[place])),
            "forwards": half + half * len(losses),
        }

    def _promising(self, place: int, gradient_E: Tensor) -> list[int]:
        """The words for which the loss, to first order, is lowest: of all, the smallest product with the gradient."""
        best, own = torch.empty(0, device=gradient_E.device), int(self._triggers.ids_P[place])
        ids = torch.empty(0, dtype=torch.long, device=gradient_E.device)
        with torch.no_grad():
            for ids_C, rows_CE in embedded(self._frozen, self._words, _CHUNK):
                product_C = (rows_CE @ gradient_E).masked_fill(ids_C == own, torch.inf)
                best, order = torch.cat([best, product_C]).sort(stable=True)
                ids = torch.cat([ids, ids_C])[order][: self._triggers.num_candidates]
                best = best[: self._triggers.num_candidates]
        return [int(x) for x in ids]

    def _losses(self, shares: Sequence[Share], place: int, rows_NE: Tensor) -> tuple[Tensor, int]:
        """``[1 + N]``: the summed losses of the present word and of each candidate on the same rows of all processes,
        and the tokens that were read for it."""
        sums = torch.zeros(2 + len(rows_NE), dtype=torch.float64)
        with torch.inference_mode():
            prompts = [self._triggers.fold(), *(self._triggers.with_word(place, row_E) for row_E in rows_NE)]
            for number, prompt in enumerate(prompts):
                assert prompt is not None
                carried = self._frozen.carried(prompt)
                for own in shares:
                    losses_S = token_losses(self._frozen, own.batch, carried, head_of(self._triggers))
                    sums[number] += own.weight * float(losses_S.sum())
                    sums[-1] += own.num_tokens
        self._processes.add([sums])
        return sums[:-1], int(sums[-1])


def search(frozen: FrozenModel, method: Method, rows: Sequence[Encoded], plan: TrainingPart, **options: Any) -> Outcome:
    """As :func:`epigraph.train.loop.train`, where a step is a search for one word."""
    return train(frozen, method, rows, plan, **options, steps_by=Search)


def words(frozen: FrozenModel) -> list[int]:
    """The ids of the vocabulary that have embeddings, special and unused ones left out."""
    num_rows = frozen.model.get_input_embeddings().weight.shape[0]
    return [i for i in frequent_ids(frozen.tokenizer, len(frozen.tokenizer)) if i < num_rows]


def found_words(frozen: FrozenModel, method: Method) -> dict[str, Any]:
    """What an artifact says of triggers: the ids and the vocabulary's own names of their words, in order."""
    assert isinstance(method, Triggers), "words are searched for by Triggers"
    ids = [int(x) for x in method.ids_P]
    return {"trigger_ids": ids, "trigger_words": [_token(frozen, i) for i in ids]}


def _token(frozen: FrozenModel, token_id: int) -> str:
    return str(frozen.tokenizer.convert_ids_to_tokens(token_id))
