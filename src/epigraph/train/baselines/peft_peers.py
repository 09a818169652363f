"""PEFT's own prefix tuning, prompt tuning and P-tuning as opponents: its modules, its forward and its ``generate``.

Our rows, batches, schedule and records; everything of the method is PEFT's (``pip install 'epigraph[lora]'``).
Legend: B batch, T text tokens, S scored tokens, P virtual tokens, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator
from torch import Tensor, nn

from epigraph.errors import BadValue
from epigraph.methods.weights import Weights
from epigraph.train.baselines.base import Baseline, BaselineConfig

if TYPE_CHECKING:
    from epigraph.contract import Decoding
    from epigraph.frozen.batch import Batch
    from epigraph.frozen.model import FrozenModel
    from epigraph.train.prepare import Prepared

CONFIGS = {"peft-prefix": "PrefixTuning", "peft-prompt": "PromptTuning", "peft-p-tuning": "PromptEncoder"}


class PeftPart(BaselineConfig):
    """``[method]`` with PEFT's name of a method behind ``peft-``. ``initial``: its default, or the keys and values of
    a text (``initial_text``, the task's instruction where none is given), which it has for prefixes only."""

    name: Literal["peft-prefix", "peft-prompt", "peft-p-tuning"]
    num_virtual_tokens: int = 10
    initial: Literal["default", "text"] = "default"
    initial_text: str | None = None

    @model_validator(mode="after")
    def _text_is_for_prefixes(self) -> PeftPart:
        if self.initial == "text" and self.name != "peft-prefix":
            raise ValueError(f"initial = 'text' is for peft-prefix, {self.name} starts as PEFT starts it; leave it out")
        return self


class Peer:
    """A PEFT model around the frozen one, which nothing of ours is bound to."""

    def __init__(self, frozen: FrozenModel, config: PeftPart) -> None:
        self.frozen, self.config = frozen, config
        own = {"encoder_hidden_size": frozen.geometry.embedding_dim} if config.name == "peft-p-tuning" else {}
        kind, count = CONFIGS[config.name], config.num_virtual_tokens
        self.model: Any = wrapped(frozen.model, kind, num_virtual_tokens=count, **own).eval()

    def losses(self, batch: Batch) -> Tensor:
        """``[S]`` float32, from padded rows and all their logits, as PEFT's users train."""
        from epigraph.frozen.likelihood import negative_log_likelihood

        with self.frozen.bind(None):
            out = self.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT)
        # A soft prompt's own places have logits too.
        logits_BTV = out.logits[:, -batch.ids_BT.shape[1] :]
        scored_BT = batch.scored_BT[:, 1:]
        return negative_log_likelihood(logits_BTV[:, :-1][scored_BT], batch.ids_BT[:, 1:][scored_BT])

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, *, batch_size: int, advance: Callable[[int], None]
    ) -> list[list[int]]:
        """The new ids of each prompt by PEFT's ``generate``, prompts of similar length together, padded on the left.

        PEFT leaves positions out where it has soft prompts, which padding would shift: there, prompts of one length.
        """
        import torch

        from epigraph.frozen.generate import until_end
        from epigraph.frozen.inputs import fill_token, pad

        tokenizer = self.frozen.tokenizer
        answers: list[list[int]] = [[] for _ in prompts]
        for numbers in self._batches(prompts, batch_size):
            ids, mask = pad([prompts[i] for i in numbers], fill_token(tokenizer), left=True)
            with torch.inference_mode(), self.frozen.bind(None), warnings.catch_warnings():
                # That it leaves positions out.
                warnings.simplefilter("ignore")
                out = self.model.generate(
                    input_ids=ids.to(self.frozen.device),
                    attention_mask=mask.to(self.frozen.device),
                    do_sample=False,
                    num_beams=decoding.num_beams,
                    max_new_tokens=decoding.max_new_tokens,
                    min_new_tokens=decoding.min_new_tokens or None,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=fill_token(tokenizer),
                )
            for number, new in zip(numbers, out[:, ids.shape[1] :].tolist(), strict=True):
                answers[number] = until_end(new, {tokenizer.eos_token_id})
            advance(len(numbers))
        return answers

    def _batches(self, prompts: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        lengths = [order]
        if self.config.name != "peft-prefix":
            lengths = [list(some) for _, some in groupby(order, key=lambda i: len(prompts[i]))]
        for some in lengths:
            yield from (some[start : start + batch_size] for start in range(0, len(some), batch_size))


def reopen(frozen: FrozenModel, config: PeftPart) -> Weights:
    """The method with PEFT's first values."""
    if frozen.kind != "causal":
        raise BadValue(f"method {config.name} is compared on causal decoders, {frozen.name} is {frozen.kind}")
    if find_spec("peft") is None:
        raise BadValue(f"method {config.name} is PEFT's, which is not installed; run pip install 'epigraph[lora]'")
    peer = Peer(frozen, config)
    method = Weights({name: x for name, x in peer.model.prompt_encoder.named_parameters() if x.requires_grad})
    method.foreign = peer
    return method


def make(ready: Prepared) -> Weights:
    """The method with its first values; the seed decides the random ones."""
    config = ready.recipe.method
    assert isinstance(config, PeftPart)
    method = reopen(ready.frozen, config)
    if config.initial == "text":
        assert isinstance(method.foreign, Peer)
        _read_text(method.foreign, config, config.initial_text or ready.task.instruction)
    return method


def wrapped(model: nn.Module, kind: str, **options: Any) -> nn.Module:
    """PEFT's ``PrefixTuningConfig`` and the like (``kind`` without ``Config``) around ``model``."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", **options)
        made: nn.Module = peft.get_peft_model(model, config)
    return made


def _read_text(peer: Peer, config: PeftPart, text: str) -> None:
    """PEFT takes the keys and values of the first P tokens of a text, so that a short one is read again."""
    import peft
    import torch

    frozen, count = peer.frozen, config.num_virtual_tokens
    ids = frozen.tokenizer(text, add_special_tokens=False).input_ids
    if not ids:
        raise BadValue(f"method.initial_text is {text[:40]!r}, which has no tokens to start from; give words")
    # Not by its initialize_kv_prefix_from_text, which calls a part of the model.
    with torch.no_grad(), frozen.bind(None):
        read = frozen.model(input_ids=torch.tensor([(ids * count)[:count]], device=frozen.device), use_cache=True)
    peft.initialize_kv_prefix_from_past_key_values(
        peer.model, past_key_values=read.past_key_values, num_virtual_tokens=count
    )


PEFT_PEER = Baseline(config=PeftPart, make=make, reopen=reopen)
